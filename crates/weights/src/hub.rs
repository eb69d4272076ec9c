//! Repositories of the Hugging Face Hub in its cache on this machine. Nothing is fetched.
//!
//! In the [cache](https://huggingface.co/docs/huggingface_hub/guides/manage-cache) `models--ORG--NAME/refs/BRANCH` holds a
//! commit, and `snapshots/COMMIT` is the directory of its files, mostly links into `blobs`.
//!
//! The crate hf-hub does not serve here: 1.0 always brings an HTTP client and hf-xet, and the `Cache` of the versions before
//! finds single files, knows neither `HF_HUB_CACHE` nor `XDG_CACHE_HOME`, and no commits by their beginning.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Component, Path, PathBuf};

use glm4v_files::{FileError, read_text};

/// Branch that counts where no revision is given.
const MAIN: &str = "main";

/// Longest file with a commit, in bytes.
const LONGEST_REF: u64 = 1 << 10;

/// Why a repository was not found in the cache.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// Neither a directory nor a repository in the cache.
    #[error(
        "{repository}: no such directory, and no such repository in the Hugging Face cache {}; a repository is downloaded \
         by: {}", cache.display(), repository.download()
    )]
    NotCached {
        /// What was looked for.
        repository: Repository,
        /// Where.
        cache: PathBuf,
    },
    /// The cache holds the repository, but not this revision.
    #[error(
        "{repository}: the Hugging Face cache {} holds {} of it; needed: {}, which is downloaded by: {}",
        cache.display(), list(known), repository.revision(), repository.download()
    )]
    NoRevision {
        /// What was looked for.
        repository: Repository,
        /// Where.
        cache: PathBuf,
        /// Branches, and commits that no branch leads to.
        known: Vec<String>,
    },
    /// The file of a branch cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
}

fn list(known: &[String]) -> String {
    if known.is_empty() { "no revision".to_owned() } else { known.join(", ") }
}

/// A repository as people name it: `ORG/NAME`, or `ORG/NAME@REVISION` with a branch or the beginning of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    name: String,
    revision: Option<String>,
}

impl Repository {
    /// Reads the name of a repository; none if it cannot be one.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, revision) = match text.split_once('@') {
            Some((name, revision)) => (name, Some(revision.to_owned())),
            None => (text, None),
        };
        let (organization, model) = name.split_once('/')?;
        let named = is_name(organization) && is_name(model);
        // A revision becomes a path.
        let plain = |revision: &String| {
            let mut components = Path::new(revision).components();
            !revision.is_empty() && components.all(|part| matches!(part, Component::Normal(_)))
        };
        (named && revision.as_ref().is_none_or(plain)).then(|| Self { name: name.to_owned(), revision })
    }

    /// `ORG/NAME`
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The revision, if there is one: a commit for what was found in a cache.
    pub fn commit(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// The revision asked for.
    fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }

    /// The command that downloads it, or the rest of it.
    pub fn download(&self) -> String {
        match &self.revision {
            Some(revision) => format!("hf download {} --revision {revision}", self.name),
            None => format!("hf download {}", self.name),
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.revision {
            Some(revision) => write!(f, "{}@{revision}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// The Hub's rule for the two parts of a name.
fn is_name(part: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let edge = |c: char| "-.".contains(c);
    (1..=96).contains(&part.len())
        && part.chars().all(known)
        && !(part.starts_with(edge) || part.ends_with(edge) || part.contains("--") || part.contains(".."))
}

/// The cache, a directory.
#[derive(Debug, Clone)]
pub struct HubCache {
    folder: PathBuf,
}

/// A repository's files at one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The directory.
    pub path: PathBuf,
    /// The repository with the commit as its revision.
    pub repository: Repository,
}

impl HubCache {
    /// The cache that the environment names, as huggingface_hub reads it: `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`,
    /// `HF_HOME`, `XDG_CACHE_HOME`, or `~/.cache/huggingface/hub`.
    pub fn from_env() -> Self {
        Self::from(|name| std::env::var_os(name), std::env::home_dir())
    }

    fn from(variable: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Self {
        let home = home.unwrap_or_default();
        let set = |name: &str| {
            let path = PathBuf::from(variable(name).filter(|value| !value.is_empty())?);
            Some(path.strip_prefix("~").map_or_else(|_| path.clone(), |rest| home.join(rest)))
        };
        let all = || set("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache")).join("huggingface");
        let folder = set("HF_HUB_CACHE")
            .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
            .unwrap_or_else(|| set("HF_HOME").unwrap_or_else(all).join("hub"));
        Self { folder }
    }

    /// The directory of a repository's files.
    ///
    /// # Errors
    ///
    /// When the cache does not have the repository, or not this revision of it.
    pub fn find(&self, repository: &Repository) -> Result<Snapshot, HubError> {
        let folder = self.folder.join(format!("models--{}", repository.name.replace('/', "--")));
        if !folder.is_dir() {
            return Err(HubError::NotCached { repository: repository.clone(), cache: self.folder.clone() });
        }
        let commits = commits(&folder);
        let wanted = match read_text(&folder.join("refs").join(repository.revision()), LONGEST_REF) {
            Ok(commit) => commit.trim().to_owned(),
            Err(error) if error.is_missing() || repository.revision.is_some() => {
                repository.revision().to_owned()
            }
            Err(error) => return Err(error.into()),
        };
        let mut found = commits.iter().filter(|commit| commit.starts_with(&wanted) && !wanted.is_empty());
        match (found.next(), found.next()) {
            (Some(commit), None) => Ok(Snapshot {
                path: folder.join("snapshots").join(commit),
                repository: Repository { revision: Some(commit.clone()), ..repository.clone() },
            }),
            _ => Err(HubError::NoRevision {
                repository: repository.clone(),
                cache: self.folder.clone(),
                known: commits,
            }),
        }
    }
}

/// The commits whose files a repository's folder in the cache holds.
fn commits(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder.join("snapshots")).into_iter().flatten().flatten();
    let names = entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.file_name());
    let mut commits: Vec<String> = names.filter_map(|name| name.into_string().ok()).collect();
    commits.sort();
    commits
}

/// Where a model or an adapter was found.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// The directory.
    pub(crate) path: PathBuf,
    /// The repository with its commit, if it was found by one's name.
    pub(crate) repository: Option<Repository>,
}

impl Place {
    /// What leads here again, whatever the branch does: the path as it was given, or repository and commit.
    pub(crate) fn name(&self) -> PathBuf {
        match &self.repository {
            Some(repository) => repository.to_string().into(),
            None => self.path.clone(),
        }
    }
}

/// Finds what a user wrote for a model or an adapter: a path if there is such a thing, else a repository in the cache.
///
/// What can be neither comes back as the path that it is.
pub(crate) fn locate(written: &Path) -> Result<Place, HubError> {
    let repository = written.to_str().and_then(Repository::parse);
    match repository.filter(|_| !written.exists()) {
        None => Ok(Place { path: written.to_owned(), repository: None }),
        Some(wanted) => {
            let Snapshot { path, repository } = HubCache::from_env().find(&wanted)?;
            tracing::info!("{wanted}: found in the Hugging Face cache, {}", path.display());
            Ok(Place { path, repository: Some(repository) })
        }
    }
}

/// What a download into the cache has left to do, for a directory in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unfinished {
    /// The command that does it.
    pub(crate) download: String,
    /// Files that were begun.
    pub(crate) begun: usize,
}

/// Looks whether a directory is a snapshot of the cache, and how its download stands; none for any other directory.
pub(crate) fn unfinished(snapshot: &Path) -> Option<Unfinished> {
    let commit = snapshot.file_name()?.to_str()?;
    let folder = snapshot.parent()?.parent()?;
    let name = folder.file_name()?.to_str()?.strip_prefix("models--")?.replacen("--", "/", 1);
    if snapshot.parent()?.file_name()? != "snapshots" {
        return None;
    }
    let repository = Repository::parse(&name)?;
    let main = read_text(&folder.join("refs").join(MAIN), LONGEST_REF).unwrap_or_default();
    let revision = (main.trim() != commit).then(|| commit.to_owned());
    let blobs = fs::read_dir(folder.join("blobs")).into_iter().flatten().flatten();
    let begun = blobs.filter(|blob| blob.file_name().to_string_lossy().ends_with(".incomplete")).count();
    Some(Unfinished { download: Repository { revision, ..repository }.download(), begun })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::{TempDir, tempdir};

    const COMMITS: [&str; 3] = [
        "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567",
        "0a1bffffffffffffffffffffffffffffffffffff",
        "ffffffffffffffffffffffffffffffffffffffff",
    ];

    /// A cache with a repository of three commits; `main` is the first, `refs/pr/1` the last.
    fn cache() -> (TempDir, HubCache) {
        let folder = tempdir().unwrap();
        let repository = folder.path().join("models--org--name.v1");
        for commit in COMMITS {
            fs::create_dir_all(repository.join("snapshots").join(commit)).unwrap();
        }
        fs::create_dir_all(repository.join("refs/refs/pr")).unwrap();
        fs::write(repository.join("refs/main"), format!("{}\n", COMMITS[0])).unwrap();
        fs::write(repository.join("refs/refs/pr/1"), COMMITS[2]).unwrap();
        let cache = HubCache { folder: folder.path().to_owned() };
        (folder, cache)
    }

    fn find(cache: &HubCache, text: &str) -> Result<String, String> {
        let repository = Repository::parse(text).unwrap_or_else(|| panic!("{text} names a repository"));
        let found = cache.find(&repository).map_err(|error| error.to_string())?;
        assert!(found.path.is_dir() && found.repository.name() == "org/name.v1");
        Ok(found.path.file_name().unwrap().to_str().unwrap().to_owned())
    }

    #[test]
    fn a_revision_is_a_branch_or_the_beginning_of_one_commit() {
        let (_folder, cache) = cache();

        for (text, commit) in [
            ("org/name.v1", COMMITS[0]),
            ("org/name.v1@main", COMMITS[0]),
            ("org/name.v1@refs/pr/1", COMMITS[2]),
            ("org/name.v1@0a1b2c3", COMMITS[0]),
            ("org/name.v1@f", COMMITS[2]),
        ] {
            assert_eq!(find(&cache, text).unwrap(), commit, "{text}");
        }
        for revision in ["0a1b", "v2", "refs"] {
            let error = find(&cache, &format!("org/name.v1@{revision}")).unwrap_err();
            let download = format!("hf download org/name.v1 --revision {revision}");
            assert!(error.contains(COMMITS[1]) && error.ends_with(&download), "{error}");
        }
    }

    #[test]
    fn what_is_not_in_the_cache_comes_with_the_command_that_downloads_it() {
        let (folder, cache) = cache();

        let error = find(&cache, "zai-org/GLM-4.1V-9B-Thinking").unwrap_err();

        let place = folder.path().to_str().unwrap();
        assert!(error.starts_with("zai-org/GLM-4.1V-9B-Thinking: no such directory, and no such repository"));
        assert!(error.contains(place) && error.ends_with("by: hf download zai-org/GLM-4.1V-9B-Thinking"));
        fs::remove_dir_all(folder.path().join("models--org--name.v1/snapshots")).unwrap();
        let error = find(&cache, "org/name.v1").unwrap_err();
        assert!(error.contains("holds no revision of it; needed: main"), "{error}");
    }

    #[test]
    fn paths_are_no_repositories() {
        for path in [
            "model",
            "a/b/c",
            "/a/b",
            "./b",
            "../b",
            "a/..",
            "a/",
            "/b",
            "a/b.",
            "-a/b",
            "a/b--c",
            "a b/c",
            "a/b@",
            "a/b@..",
            "a/b@/x",
            "a/b@x/../y",
            "~/b",
            "",
        ] {
            assert_eq!(Repository::parse(path), None, "{path}");
        }
        assert!(Repository::parse(&format!("a/{}", "b".repeat(97))).is_none());
    }

    #[test]
    fn the_environment_names_the_cache_as_in_python() {
        // huggingface_hub/constants.py, from the last to the first that counts.
        let mut set: Vec<(&str, &str)> = Vec::new();
        for (name, value, folder) in [
            ("", "", "/home/me/.cache/huggingface/hub"),
            ("XDG_CACHE_HOME", "/xdg", "/xdg/huggingface/hub"),
            ("HF_HOME", "~/hf", "/home/me/hf/hub"),
            ("HUGGINGFACE_HUB_CACHE", "/old", "/old"),
            ("HF_HUB_CACHE", "/new", "/new"),
        ] {
            set.push((name, value));
            let variable = |wanted: &str| set.iter().find(|(name, _)| *name == wanted).map(|(_, v)| v.into());

            assert_eq!(HubCache::from(variable, Some("/home/me".into())).folder, Path::new(folder));
        }
    }

    #[test]
    fn a_snapshot_knows_the_download_that_it_comes_from() {
        let (folder, _) = cache();
        let repository = folder.path().join("models--org--name.v1");
        fs::create_dir(repository.join("blobs")).unwrap();
        fs::write(repository.join("blobs/abc.incomplete"), "").unwrap();
        let at = |commit: &str| unfinished(&repository.join("snapshots").join(commit));

        let rest = |download: &str| Some(Unfinished { download: download.to_owned(), begun: 1 });
        assert_eq!(at(COMMITS[0]), rest("hf download org/name.v1"));
        assert_eq!(at(COMMITS[2]), rest(&format!("hf download org/name.v1 --revision {}", COMMITS[2])));
        assert_eq!(unfinished(&repository), None);
        assert_eq!(unfinished("model".as_ref()), None);
    }
}
