//! The proto as its compiler left it: messages, enums, calls, and what their comments say.

use std::collections::{BTreeMap, HashMap};

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet};

use crate::proto::DESCRIPTORS;

const PACKAGE: &str = ".leasehold.v1.";
/// A UUIDv7. An empty one is none.
const JOB_ID: &str =
    "^([0-9a-fA-F]{8}-[0-9a-fA-F]{4}-7[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12})?$";
/// Numbers of fields of descriptors, which make the paths of comments: descriptor.proto.
const MESSAGES: i32 = 4;
const SERVICES: i32 = 6;
const FIELDS: i32 = 2;

/// All of them, by the names that the proto gives them.
pub struct Descriptors {
    messages: BTreeMap<String, Vec<Field>>,
    rpcs: HashMap<(String, String), (String, String, String)>,
    about: String,
}

/// One field of a message.
#[derive(Debug, Clone)]
pub struct Field {
    pub name: String,
    pub kind: Kind,
    pub repeated: bool,
    pub comment: String,
    /// It is what the server says, and not what it is told.
    pub is_answer: bool,
}

/// What a field holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Text,
    Bytes,
    Bool,
    /// 32 bits.
    Small,
    /// 64 bits.
    Large,
    Number,
    Span,
    Time,
    /// Texts by texts.
    Words,
    /// One of these.
    Enum(Vec<String>),
    /// Another message, by its name.
    Message(String),
    Payload,
}

impl Field {
    /// It cannot be left out.
    pub fn is_required(&self) -> bool {
        !self.is_answer && self.comment.ends_with("Required.")
    }

    /// The pattern that its comment gives, as `[A-Za-z0-9_.:-]{1,128}`; that of an id where it is one.
    pub fn pattern(&self) -> Option<String> {
        if matches!(self.name.as_str(), "job_id" | "bulk_id") {
            return Some(JOB_ID.to_owned());
        }
        let word = |word: &str| {
            let word = word.trim_end_matches(['.', ',', ';', ':']);
            (word.starts_with('[') && word.ends_with('}')).then(|| format!("^{word}$"))
        };
        self.comment.split_whitespace().find_map(word)
    }
}

impl Descriptors {
    /// Those of this program. `None` only if what was compiled in is broken.
    pub fn ours() -> Option<Self> {
        let set = FileDescriptorSet::decode(DESCRIPTORS).ok()?;
        let ours = set
            .file
            .iter()
            .filter(|file| file.package() == "leasehold.v1");
        let mut all = Self {
            messages: BTreeMap::new(),
            rpcs: HashMap::new(),
            about: String::new(),
        };
        let files: Vec<(&FileDescriptorProto, Comments)> =
            ours.map(|file| (file, Comments::of(file))).collect();
        let enums: HashMap<String, Vec<String>> = files
            .iter()
            .flat_map(|(file, _)| &file.enum_type)
            .map(|one| {
                let values = one.value.iter().map(|value| value.name());
                (one.name().to_owned(), shortened(one.name(), values))
            })
            .collect();
        for (file, comments) in &files {
            for (at, message) in (0..).zip(&file.message_type) {
                let fields = (0..).zip(&message.field).map(|(field_at, field)| Field {
                    name: field.name().to_owned(),
                    kind: kind(field, message, &enums),
                    repeated: field.label() == Label::Repeated
                        && map_entry(field, message).is_none(),
                    comment: comments.at(&[MESSAGES, at, FIELDS, field_at]),
                    is_answer: false,
                });
                all.messages
                    .insert(message.name().to_owned(), fields.collect());
            }
            for (at, service) in (0..).zip(&file.service) {
                for (method_at, method) in (0..).zip(&service.method) {
                    let key = (service.name().to_owned(), method.name().to_owned());
                    let comment = comments.at(&[SERVICES, at, FIELDS, method_at]);
                    let (input, output) = (bare(method.input_type()), bare(method.output_type()));
                    all.rpcs.insert(key, (input, output, comment));
                }
                if service.name() == "JobService" {
                    all.about = comments.at(&[SERVICES, at]);
                }
            }
        }
        Some(all)
    }

    /// Its fields, in the order of the proto; none of a message that there is not.
    pub fn fields(&self, message: &str) -> Vec<Field> {
        self.messages.get(message).cloned().unwrap_or_default()
    }

    /// What a call is given, what it answers, and what is said about it.
    pub fn rpc(&self, service: &str, name: &str) -> (String, String, String) {
        let key = (service.to_owned(), name.to_owned());
        self.rpcs.get(&key).cloned().unwrap_or_default()
    }

    /// Service and name of each call that is not a worker's.
    #[cfg(test)]
    pub fn rpcs(&self) -> impl Iterator<Item = (String, String)> {
        let others = self
            .rpcs
            .keys()
            .filter(|(service, _)| service != "WorkerService");
        others.cloned()
    }

    /// What is said about the whole.
    pub fn about(&self) -> &str {
        &self.about
    }
}

/// What is said before each thing of a file, by its path.
struct Comments(HashMap<Vec<i32>, String>);

impl Comments {
    fn of(file: &FileDescriptorProto) -> Self {
        let places = file.source_code_info.iter().flat_map(|info| &info.location);
        let said = places.map(|place| {
            let lines = place.leading_comments().lines().map(str::trim);
            let text = lines.collect::<Vec<_>>().join(" ");
            (place.path.clone(), text.trim().to_owned())
        });
        Self(said.collect())
    }

    fn at(&self, path: &[i32]) -> String {
        self.0.get(path).cloned().unwrap_or_default()
    }
}

fn kind(
    field: &FieldDescriptorProto,
    message: &DescriptorProto,
    enums: &HashMap<String, Vec<String>>,
) -> Kind {
    match field.r#type() {
        Type::String => Kind::Text,
        Type::Bytes => Kind::Bytes,
        Type::Bool => Kind::Bool,
        Type::Uint32 | Type::Int32 => Kind::Small,
        Type::Uint64 | Type::Int64 => Kind::Large,
        Type::Double | Type::Float => Kind::Number,
        Type::Enum => Kind::Enum(
            enums
                .get(&bare(field.type_name()))
                .cloned()
                .unwrap_or_default(),
        ),
        _ if map_entry(field, message).is_some() => Kind::Words,
        _ => match field.type_name() {
            ".google.protobuf.Duration" => Kind::Span,
            ".google.protobuf.Timestamp" => Kind::Time,
            ".leasehold.v1.Payload" => Kind::Payload,
            other => Kind::Message(bare(other)),
        },
    }
}

fn map_entry<'a>(
    field: &FieldDescriptorProto,
    message: &'a DescriptorProto,
) -> Option<&'a DescriptorProto> {
    let name = field.type_name().rsplit('.').next()?;
    message.nested_type.iter().find(|one| one.name() == name)
}

fn bare(name: &str) -> String {
    name.strip_prefix(PACKAGE).unwrap_or(name).to_owned()
}

/// Values without the prefix that they all have, and without the one that says nothing.
fn shortened<'a>(name: &str, values: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut prefix = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !prefix.is_empty() {
            prefix.push('_');
        }
        prefix.extend(letter.to_uppercase());
    }
    prefix.push('_');
    let short = values.map(|value| value.strip_prefix(&prefix).unwrap_or(value));
    short
        .filter(|value| *value != "UNSPECIFIED")
        .map(str::to_owned)
        .collect()
}
