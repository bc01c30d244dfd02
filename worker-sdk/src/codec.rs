//! Payloads that the server cannot read.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::failure::JobError;
use crate::handler::body;
use crate::proto::{self, Payload};

/// Seals payloads, outputs and checkpoints before they leave the process and
/// opens them when they come back, so that the server and its database never see
/// plain text. Clients and workers of the same jobs have the same one.
///
/// Queue, kind, labels, headers, keys, progress notes and the words of failures
/// are not sealed: put nothing secret there. Sealed bytes count against the
/// limits of the wire.
///
/// **It should be deterministic** (as AES-SIV is): a `NewJob` that is enqueued
/// again is the same request only if it is sealed to the same bytes. With a
/// random nonce such a repeat is refused with `ID_CONFLICT` or `KEY_CONFLICT`;
/// the client's own retries of one call send the same bytes in any case.
///
/// A payload of another content type is taken as it is, so that jobs from before
/// are run, and so is a checkpoint that does not begin with the content type and a
/// zero byte, as the sealed ones do. Who must not be able to slip in plain ones
/// should look at that in a handler of their own.
pub trait Codec: Send + Sync + 'static {
    /// The content type of what it has sealed, as `application/vnd.acme.sealed`.
    fn content_type(&self) -> &str;

    /// Seals bytes.
    ///
    /// # Errors
    /// Whatever keeps it from that; the call or the attempt fails with it.
    fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, Box<dyn StdError + Send + Sync>>;

    /// Opens what [`seal`](Self::seal) has sealed, under any of the keys that are
    /// in use.
    ///
    /// # Errors
    /// As for `seal`. A worker fails the job for good by it.
    fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, Box<dyn StdError + Send + Sync>>;
}

/// The codec, if there is one.
#[derive(Clone, Default)]
pub(crate) struct Sealer(Option<Arc<dyn Codec>>);

/// Why something could not be sealed or opened. No `std::error::Error`, as it becomes a `JobError` of its own kind.
#[derive(Debug)]
pub(crate) struct CodecFailed {
    what: &'static str,
    why: String,
}

impl Sealer {
    pub(crate) fn new(codec: impl Codec) -> Self {
        Self(Some(Arc::new(codec)))
    }

    /// What is sealed is the content type's length in two bytes, the content
    /// type, and the body.
    pub(crate) fn seal(&self, payload: Payload) -> Result<Payload, CodecFailed> {
        let Some(codec) = &self.0 else {
            return Ok(payload);
        };
        let length = u16::try_from(payload.content_type.len())
            .map_err(|_| failed("seal", "the content type is too long"))?;
        let mut plain = length.to_be_bytes().to_vec();
        plain.extend_from_slice(payload.content_type.as_bytes());
        plain.extend_from_slice(&body(&payload));
        let sealed = codec.seal(&plain).map_err(|why| failed("seal", why))?;
        Ok(Payload {
            content_type: codec.content_type().to_owned(),
            body: Some(proto::payload::Body::Data(sealed.into())),
        })
    }

    pub(crate) fn open(&self, payload: Payload) -> Result<Payload, CodecFailed> {
        let Some(codec) = &self.0 else {
            return Ok(payload);
        };
        if payload.content_type != codec.content_type() {
            return Ok(payload);
        }
        let plain = codec
            .open(&body(&payload))
            .map_err(|why| failed("open", why))?;
        opened(Bytes::from(plain)).ok_or_else(|| failed("open", "it is none of ours"))
    }

    /// Opens what a job carries, where it is there.
    pub(crate) fn open_job(&self, job: &mut proto::Job) -> Result<(), CodecFailed> {
        let payload = job.spec.as_mut().and_then(|spec| spec.payload.as_mut());
        for sealed in [payload, job.output.as_mut()].into_iter().flatten() {
            *sealed = self.open(std::mem::take(sealed))?;
        }
        Ok(())
    }

    /// Bytes have no content type beside them by which sealed ones are known again: they begin with it, and a zero byte.
    pub(crate) fn seal_bytes(&self, plain: Bytes) -> Result<Bytes, CodecFailed> {
        let Some(codec) = &self.0 else {
            return Ok(plain);
        };
        let sealed = codec.seal(&plain).map_err(|why| failed("seal", why))?;
        Ok([codec.content_type().as_bytes(), &[0], &sealed]
            .concat()
            .into())
    }

    pub(crate) fn open_bytes(&self, bytes: Bytes) -> Result<Bytes, CodecFailed> {
        let Some(codec) = &self.0 else {
            return Ok(bytes);
        };
        let rest = bytes.strip_prefix(codec.content_type().as_bytes());
        let Some(sealed) = rest.and_then(|rest| rest.strip_prefix(&[0])) else {
            return Ok(bytes);
        };
        let plain = codec.open(sealed).map_err(|why| failed("open", why))?;
        Ok(plain.into())
    }
}

impl fmt::Display for CodecFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the codec cannot {}: {}", self.what, self.why)
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Some(_) => "sealed",
            None => "plain",
        })
    }
}

/// The same bytes will not become another input, so the failure is permanent.
impl From<CodecFailed> for JobError {
    fn from(failed: CodecFailed) -> Self {
        Self::new(failed).with_type("CodecFailed").permanent()
    }
}

fn opened(plain: Bytes) -> Option<Payload> {
    let (length, rest) = plain.split_at_checked(2)?;
    let length = usize::from(u16::from_be_bytes(length.try_into().ok()?));
    let content_type = rest.get(..length)?;
    Some(Payload {
        content_type: std::str::from_utf8(content_type).ok()?.to_owned(),
        body: Some(proto::payload::Body::Data(plain.slice(2 + length..))),
    })
}

fn failed(what: &'static str, why: impl fmt::Display) -> CodecFailed {
    CodecFailed {
        what,
        why: why.to_string(),
    }
}
