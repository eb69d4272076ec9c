//! How the records of a dataset are written: the keys of their content and the names of their roles.
//!
//! The vocabulary is LLaMA-Factory's. Unset values are detected in each record: messages are listed under `messages` or
//! `conversations`, a message has `role`/`content` or `from`/`value`, and the role names of both styles are known.

/// The style of a dataset's records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Formatting {
    /// Detected in each record.
    #[default]
    Auto,
    /// `messages` of `role` and `content`; content is text or a list of parts.
    OpenAi,
    /// `conversations` of `from` and `value`; content is text with `<image>` in it.
    ShareGpt,
    /// `instruction`, `input` and `output`, texts with `<image>` in them.
    Alpaca,
}

/// Keys of a record; `None` is the formatting's own key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns {
    /// The list of messages.
    pub messages: Option<String>,
    /// The images, in the order of their placeholders; `images` or `image` by default.
    pub images: Option<String>,
    /// The videos, in the order of their placeholders; `videos` or `video` by default.
    pub videos: Option<String>,
    /// The system prompt; `system` by default.
    pub system: Option<String>,
    /// The tools that the model may call; `tools` by default.
    pub tools: Option<String>,
    /// The prompt of alpaca records; `instruction` by default.
    pub prompt: Option<String>,
    /// The second part of an alpaca prompt; `input` by default.
    pub query: Option<String>,
    /// The response of alpaca records; `output` by default.
    pub response: Option<String>,
    /// Earlier prompts and responses of alpaca records; `history` by default.
    pub history: Option<String>,
}

/// Keys of a message and names of the roles; `None` is the formatting's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tags {
    /// The key of the role.
    pub role_tag: Option<String>,
    /// The key of the content.
    pub content_tag: Option<String>,
    /// Name of the user; `user` and `human` by default.
    pub user_tag: Option<String>,
    /// Name of the assistant; `assistant` and `gpt` by default.
    pub assistant_tag: Option<String>,
    /// Name of a tool that returns a result; `tool` and `observation` by default.
    pub observation_tag: Option<String>,
    /// Name of the assistant when it calls a tool; `function_call` by default.
    pub function_tag: Option<String>,
    /// Name of the system; `system` by default.
    pub system_tag: Option<String>,
}

/// The keys and role names of a dataset's records; by default all are detected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecordSchema {
    /// The style of the records.
    pub formatting: Formatting,
    /// Keys of a record.
    pub columns: Columns,
    /// Keys of a message and names of the roles.
    pub tags: Tags,
}

/// The role of a message, independent of its name in the dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    User,
    Assistant,
    Tool,
    /// The assistant, in a message of sharegpt that spells a tool call as text.
    FunctionCall,
    System,
}

impl Role {
    /// The role's name in chat templates.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Assistant | Self::FunctionCall => "assistant",
            Self::Tool => "tool",
            Self::System => "system",
        }
    }
}

impl RecordSchema {
    /// The names of each role.
    fn roles(&self) -> [(Role, Vec<&str>); 5] {
        let Tags { user_tag, assistant_tag, observation_tag, function_tag, system_tag, .. } = &self.tags;
        [
            (Role::User, tag_or_defaults(user_tag, &["user", "human"])),
            (Role::Assistant, tag_or_defaults(assistant_tag, &["assistant", "gpt"])),
            (Role::Tool, tag_or_defaults(observation_tag, &["tool", "observation"])),
            (Role::FunctionCall, tag_or_defaults(function_tag, &["function_call"])),
            (Role::System, tag_or_defaults(system_tag, &["system"])),
        ]
    }

    /// The role of that name.
    pub(crate) fn role(&self, name: &str) -> Option<Role> {
        self.roles().into_iter().find(|(_, names)| names.contains(&name)).map(|(role, _)| role)
    }

    /// All names of roles.
    pub(crate) fn role_names(&self) -> Vec<&str> {
        self.roles().into_iter().flat_map(|(_, names)| names).collect()
    }
}

fn tag_or_defaults<'a>(tag: &'a Option<String>, defaults: &[&'static str]) -> Vec<&'a str> {
    tag.as_deref().map_or_else(|| defaults.to_vec(), |tag| vec![tag])
}

/// The key of a column or tag.
pub(crate) fn key_or<'a>(given: &'a Option<String>, default: &'static str) -> &'a str {
    given.as_deref().unwrap_or(default)
}
