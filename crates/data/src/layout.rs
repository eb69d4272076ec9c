//! How the records of a dataset are written: which keys hold what, and what the speakers are called.
//!
//! The words are LLaMA-Factory's. What is left out is found in each record: the list of turns is
//! `messages` or `conversations`, a turn has `role`/`content` or `from`/`value`, and every name of a
//! speaker that either form knows is understood.

/// The form of the records of a dataset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Formatting {
    /// Found in each record.
    #[default]
    Auto,
    /// `messages` of `role` and `content`; content is text or a list of parts.
    OpenAi,
    /// `conversations` of `from` and `value`; content is text with `<image>` in it.
    ShareGpt,
    /// `instruction`, `input` and `output`, texts with `<image>` in them.
    Alpaca,
}

/// Keys of a record; `None` is the name that the formatting has for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns {
    /// The turns.
    pub messages: Option<String>,
    /// The images, in the order of their places in the text; `images` or `image` by default.
    pub images: Option<String>,
    /// The videos, in the order of their places in the text; `videos` or `video` by default.
    pub videos: Option<String>,
    /// A text of the system that comes before the turns; `system` by default.
    pub system: Option<String>,
    /// The tools that the model may call; `tools` by default.
    pub tools: Option<String>,
    /// The question of alpaca records; `instruction` by default.
    pub prompt: Option<String>,
    /// What an alpaca record asks about; `input` by default.
    pub query: Option<String>,
    /// The answer of alpaca records; `output` by default.
    pub response: Option<String>,
    /// Earlier questions and answers of alpaca records; `history` by default.
    pub history: Option<String>,
}

/// Keys of a turn and names of the speakers; `None` is what the formatting has for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tags {
    /// The key that names the speaker.
    pub role_tag: Option<String>,
    /// The key that holds what is said.
    pub content_tag: Option<String>,
    /// Name of the user; `user` and `human` by default.
    pub user_tag: Option<String>,
    /// Name of the model; `assistant` and `gpt` by default.
    pub assistant_tag: Option<String>,
    /// Name of a tool that answers; `tool` and `observation` by default.
    pub observation_tag: Option<String>,
    /// Name of the model when it calls a tool; `function_call` by default.
    pub function_tag: Option<String>,
    /// Name of the system; `system` by default.
    pub system_tag: Option<String>,
}

/// How the records of a dataset are written; the default finds out by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// The form of the records.
    pub formatting: Formatting,
    /// Keys of a record.
    pub columns: Columns,
    /// Keys of a turn and names of the speakers.
    pub tags: Tags,
}

/// Who speaks, whatever the dataset calls them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaker {
    User,
    Assistant,
    Tool,
    FunctionCall,
    System,
}

impl Speaker {
    /// The role that chat templates know.
    pub(crate) fn role(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Assistant | Self::FunctionCall => "assistant",
            Self::Tool => "tool",
            Self::System => "system",
        }
    }
}

impl Layout {
    /// The names of each speaker.
    fn speakers(&self) -> [(Speaker, Vec<&str>); 5] {
        let Tags { user_tag, assistant_tag, observation_tag, function_tag, system_tag, .. } = &self.tags;
        fn either<'a>(tag: &'a Option<String>, known: &[&'static str]) -> Vec<&'a str> {
            tag.as_deref().map_or_else(|| known.to_vec(), |tag| vec![tag])
        }
        [
            (Speaker::User, either(user_tag, &["user", "human"])),
            (Speaker::Assistant, either(assistant_tag, &["assistant", "gpt"])),
            (Speaker::Tool, either(observation_tag, &["tool", "observation"])),
            (Speaker::FunctionCall, either(function_tag, &["function_call"])),
            (Speaker::System, either(system_tag, &["system"])),
        ]
    }

    /// Who `name` is.
    pub(crate) fn speaker(&self, name: &str) -> Option<Speaker> {
        self.speakers().into_iter().find(|(_, names)| names.contains(&name)).map(|(speaker, _)| speaker)
    }

    /// Every name of a speaker that is understood.
    pub(crate) fn speaker_names(&self) -> Vec<&str> {
        self.speakers().into_iter().flat_map(|(_, names)| names).collect()
    }
}
