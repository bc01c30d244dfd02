//! Thumbnails with progress: work that takes its time on a thread of its own, tells how far it is, and stops when its job is
//! cancelled.
//!
//!     leasehold dev                                # in one terminal
//!     cargo run -p worker-sdk --example thumbnails
//!
//! It makes a picture, enqueues a job for it, and is the job's worker too. Pictures are PPM files, which need no library.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use worker_sdk::{Client, Context, JobError, NewJob, TypedJob, Worker};

#[derive(Serialize, Deserialize)]
struct Thumbnail {
    picture: PathBuf,
    /// Pixels of the picture that become one, in each direction.
    shrink: usize,
}

impl TypedJob for Thumbnail {
    const KIND: &'static str = "thumbnail";
    const QUEUE: &'static str = "pictures";
    type Output = PathBuf;

    fn options(&self, job: NewJob) -> NewJob {
        job.max_attempts(3).timeout(Duration::from_secs(60))
    }
}

/// Blocks, so it is run on a thread; what it returns is the job's output.
fn shrink(context: &Context, job: &Thumbnail) -> Result<PathBuf, JobError> {
    let picture = Ppm::read(&job.picture)?;
    let (width, height) = (picture.width / job.shrink, picture.height / job.shrink);
    let mut small = Ppm {
        width,
        height,
        pixels: Vec::with_capacity(3 * width * height),
    };
    for y in 0..height {
        if context.is_cancelled() {
            return Err(JobError::new("cancelled in the middle"));
        }
        for x in 0..width {
            small.pixels.extend(picture.mean(x, y, job.shrink));
        }
        let percent = u32::try_from(100 * y / height)?;
        context.progress(percent, format!("row {y} of {height}"));
    }
    // The same name at each attempt: doing it twice does no harm.
    let path = job.picture.with_extension("small.ppm");
    small.write(&path)?;
    Ok(path)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = std::env::var("LEASEHOLD_SERVER").unwrap_or("http://127.0.0.1:7070".into());
    let worker = Worker::builder(&server)
        .queue(Thumbnail::QUEUE)
        .concurrency(2)
        .blocking_handler(Thumbnail::KIND, |context, job: Thumbnail| {
            shrink(&context, &job)
        })
        .build()?;
    let worker = tokio::spawn(worker.run());

    let folder = std::env::temp_dir().join(format!("thumbnails-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let picture = folder.join("sky.ppm");
    Ppm::gradient(1_200, 800).write(&picture)?;

    let client = Client::connect(&server).await?;
    let job = Thumbnail { picture, shrink: 8 };
    let id = client.enqueue(job.job()?).await?.job.id;
    let job = client.wait(&id, Duration::from_secs(60)).await?;
    let small = job.output_of::<Thumbnail>()?;
    println!(
        "{} of {} bytes",
        small.display(),
        fs::metadata(&small)?.len()
    );

    fs::remove_dir_all(&folder)?;
    worker.abort();
    Ok(())
}

struct Ppm {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Ppm {
    fn gradient(width: usize, height: usize) -> Self {
        let at = |n: usize| [n % width, n / width, width - n % width];
        let pixels = (0..width * height).flat_map(at).map(|c| (c % 256) as u8);
        Self {
            width,
            height,
            pixels: pixels.collect(),
        }
    }

    fn read(path: &Path) -> Result<Self, JobError> {
        let bytes = fs::read(path)?;
        let bad = || JobError::new("no PPM picture").permanent();
        let end = bytes.windows(5).position(|part| part == b"\n255\n");
        let (head, pixels) = bytes
            .split_at_checked(end.ok_or_else(bad)? + 5)
            .ok_or_else(bad)?;
        let head = std::str::from_utf8(head)?;
        let mut words = head.split_whitespace().skip(1).map(str::parse);
        let (Some(width), Some(height)) = (words.next(), words.next()) else {
            return Err(bad());
        };
        let (width, height) = (width?, height?);
        if pixels.len() != 3 * width * height {
            return Err(bad());
        }
        Ok(Self {
            width,
            height,
            pixels: pixels.to_vec(),
        })
    }

    fn write(&self, path: &Path) -> std::io::Result<()> {
        let head = format!("P6\n{} {}\n255\n", self.width, self.height);
        fs::write(path, [head.as_bytes(), &self.pixels].concat())
    }

    /// The mean colour of a square.
    fn mean(&self, x: usize, y: usize, side: usize) -> [u8; 3] {
        let mut sums = [0; 3];
        for row in y * side..(y + 1) * side {
            for column in x * side..(x + 1) * side {
                let at = 3 * (row * self.width + column);
                for (sum, colour) in sums.iter_mut().zip(&self.pixels[at..at + 3]) {
                    *sum += usize::from(*colour);
                }
            }
        }
        sums.map(|sum| (sum / (side * side)) as u8)
    }
}
