//! Lookup of repositories in the local Hugging Face cache. Nothing is downloaded.
//!
//! In the [cache](https://huggingface.co/docs/huggingface_hub/guides/manage-cache) `models--ORG--NAME/refs/BRANCH` contains a
//! commit hash, and `snapshots/COMMIT` is the directory of its files, mostly links into `blobs`.
//!
//! Not the crate hf-hub: 1.0 always depends on an HTTP client and hf-xet, and the `Cache` of earlier versions finds only single
//! files, ignores `HF_HUB_CACHE` and `XDG_CACHE_HOME`, and does not resolve abbreviated commits.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Component, Path, PathBuf};

use glm4v_files::{FileError, read_text};

/// Default revision.
const MAIN_BRANCH: &str = "main";

/// Longest file in `refs`, in bytes.
const LONGEST_REF: u64 = 1 << 10;

/// Why a repository was not found in the cache.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// Neither a directory nor a repository in the cache.
    #[error(
        "{repository}: no such directory, and no such repository in the Hugging Face cache {}; a repository is downloaded \
         by: {}", cache.display(), repository.download_command()
    )]
    NotCached {
        /// The requested repository.
        repository: RepoId,
        /// Directory of the cache.
        cache: PathBuf,
    },
    /// The cache holds the repository, but not this revision.
    #[error(
        "{repository}: the Hugging Face cache {} holds {} of it; needed: {}, which is downloaded by: {}",
        cache.display(), list_commits(known), repository.revision(), repository.download_command()
    )]
    NoRevision {
        /// The requested repository.
        repository: RepoId,
        /// Directory of the cache.
        cache: PathBuf,
        /// The cached commits.
        known: Vec<String>,
    },
    /// A file in `refs` cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
}

fn list_commits(known: &[String]) -> String {
    if known.is_empty() { "no revision".to_owned() } else { known.join(", ") }
}

/// A repository id, `ORG/NAME`, with an optional revision, `ORG/NAME@REVISION`: a branch, a tag or an abbreviated commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoId {
    name: String,
    revision: Option<String>,
}

impl RepoId {
    /// Parses a repository id; `None` if `text` is not a valid one.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, revision) = match text.split_once('@') {
            Some((name, revision)) => (name, Some(revision.to_owned())),
            None => (text, None),
        };
        let (organization, model) = name.split_once('/')?;
        let valid = is_valid_name(organization)
            && is_valid_name(model)
            && revision.as_deref().is_none_or(is_valid_revision);
        valid.then(|| Self { name: name.to_owned(), revision })
    }

    /// `ORG/NAME`, without the revision.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The revision, if there is one: a full commit hash for a repository that was found in the cache.
    pub fn commit(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// The requested revision, `main` by default.
    fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN_BRANCH)
    }

    /// The command that downloads it, or resumes its download.
    pub fn download_command(&self) -> String {
        match &self.revision {
            Some(revision) => format!("hf download {} --revision {revision}", self.name),
            None => format!("hf download {}", self.name),
        }
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.revision {
            Some(revision) => write!(f, "{}@{revision}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// The Hub's rule for organization and model names.
fn is_valid_name(part: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let edge = |c: char| "-.".contains(c);
    (1..=96).contains(&part.len())
        && part.chars().all(known)
        && !(part.starts_with(edge) || part.ends_with(edge) || part.contains("--") || part.contains(".."))
}

/// A revision is used as a relative path under `refs`.
fn is_valid_revision(revision: &str) -> bool {
    let mut components = Path::new(revision).components();
    !revision.is_empty() && components.all(|part| matches!(part, Component::Normal(_)))
}

/// The local Hugging Face cache.
#[derive(Debug, Clone)]
pub struct HubCache {
    dir: PathBuf,
}

/// The cached files of a repository at one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Directory of the files.
    pub path: PathBuf,
    /// The repository, with the full commit hash as its revision.
    pub repository: RepoId,
}

impl HubCache {
    /// Locates the cache by the environment variables of huggingface_hub: `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`,
    /// `HF_HOME`, `XDG_CACHE_HOME`, or `~/.cache/huggingface/hub`.
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var_os(name), std::env::home_dir())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Self {
        let home = home.unwrap_or_default();
        let set = |name: &str| {
            let path = PathBuf::from(variable(name).filter(|value| !value.is_empty())?);
            Some(path.strip_prefix("~").map_or_else(|_| path.clone(), |rest| home.join(rest)))
        };
        let hf_home = || set("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache")).join("huggingface");
        let dir = set("HF_HUB_CACHE")
            .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
            .unwrap_or_else(|| set("HF_HOME").unwrap_or_else(hf_home).join("hub"));
        Self { dir }
    }

    /// Finds the snapshot of a repository.
    ///
    /// # Errors
    ///
    /// When the repository or its revision is not cached.
    pub fn find(&self, repository: &RepoId) -> Result<Snapshot, HubError> {
        let dir = self.dir.join(format!("models--{}", repository.name.replace('/', "--")));
        if !dir.is_dir() {
            return Err(HubError::NotCached { repository: repository.clone(), cache: self.dir.clone() });
        }
        let commits = cached_commits(&dir);
        let wanted = match read_text(&dir.join("refs").join(repository.revision()), LONGEST_REF) {
            Ok(commit) => commit.trim().to_owned(),
            Err(error) if error.is_missing() || repository.revision.is_some() => {
                repository.revision().to_owned()
            }
            Err(error) => return Err(error.into()),
        };
        let mut found = commits.iter().filter(|commit| commit.starts_with(&wanted) && !wanted.is_empty());
        match (found.next(), found.next()) {
            (Some(commit), None) => Ok(Snapshot {
                path: dir.join("snapshots").join(commit),
                repository: RepoId { revision: Some(commit.clone()), ..repository.clone() },
            }),
            _ => Err(HubError::NoRevision {
                repository: repository.clone(),
                cache: self.dir.clone(),
                known: commits,
            }),
        }
    }
}

/// Sorted commits in the cache directory of a repository.
fn cached_commits(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir.join("snapshots")).into_iter().flatten().flatten();
    let names = entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.file_name());
    let mut commits: Vec<String> = names.filter_map(|name| name.into_string().ok()).collect();
    commits.sort();
    commits
}

/// The directory of a model or an adapter.
#[derive(Debug, Clone)]
pub(crate) struct ResolvedDir {
    pub(crate) path: PathBuf,
    /// The repository with its commit, if the directory is a cached snapshot found by a repository id.
    pub(crate) repository: Option<RepoId>,
}

impl ResolvedDir {
    /// An argument that resolves to the same files even after another download: the path as it was given, or the repository
    /// at its commit.
    pub(crate) fn name(&self) -> PathBuf {
        match &self.repository {
            Some(repository) => repository.to_string().into(),
            None => self.path.clone(),
        }
    }
}

/// Resolves the argument for a model or an adapter: an existing path as it is, else a repository id to its cached snapshot.
///
/// A path that is neither is returned unchanged.
pub(crate) fn resolve(given: &Path) -> Result<ResolvedDir, HubError> {
    let repository = given.to_str().and_then(RepoId::parse);
    match repository.filter(|_| !given.exists()) {
        None => Ok(ResolvedDir { path: given.to_owned(), repository: None }),
        Some(wanted) => {
            let Snapshot { path, repository } = HubCache::from_env().find(&wanted)?;
            tracing::info!("{wanted}: found in the Hugging Face cache, {}", path.display());
            Ok(ResolvedDir { path, repository: Some(repository) })
        }
    }
}

/// State of an interrupted download.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct IncompleteDownload {
    /// Command that resumes it.
    pub(crate) download: String,
    /// Number of `.incomplete` blobs.
    pub(crate) begun: usize,
}

/// The download that a snapshot came from, as it may be incomplete; `None` for a directory that is not a snapshot.
pub(crate) fn incomplete_download(snapshot: &Path) -> Option<IncompleteDownload> {
    let commit = snapshot.file_name()?.to_str()?;
    let dir = snapshot.parent()?.parent()?;
    let name = dir.file_name()?.to_str()?.strip_prefix("models--")?.replacen("--", "/", 1);
    if snapshot.parent()?.file_name()? != "snapshots" {
        return None;
    }
    let repository = RepoId::parse(&name)?;
    let main = read_text(&dir.join("refs").join(MAIN_BRANCH), LONGEST_REF).unwrap_or_default();
    let revision = (main.trim() != commit).then(|| commit.to_owned());
    let blobs = fs::read_dir(dir.join("blobs")).into_iter().flatten().flatten();
    let begun = blobs.filter(|blob| blob.file_name().to_string_lossy().ends_with(".incomplete")).count();
    Some(IncompleteDownload { download: RepoId { revision, ..repository }.download_command(), begun })
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
        let cache = HubCache { dir: folder.path().to_owned() };
        (folder, cache)
    }

    fn find(cache: &HubCache, text: &str) -> Result<String, String> {
        let repository = RepoId::parse(text).unwrap_or_else(|| panic!("{text} names a repository"));
        let found = cache.find(&repository).map_err(|error| error.to_string())?;
        assert!(found.path.is_dir() && found.repository.name() == "org/name.v1");
        Ok(found.path.file_name().unwrap().to_str().unwrap().to_owned())
    }

    #[test]
    fn a_revision_is_a_branch_or_an_abbreviated_commit() {
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
    fn a_missing_repository_is_an_error_with_the_download_command() {
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
            assert_eq!(RepoId::parse(path), None, "{path}");
        }
        assert!(RepoId::parse(&format!("a/{}", "b".repeat(97))).is_none());
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

            assert_eq!(HubCache::from_variables(variable, Some("/home/me".into())).dir, Path::new(folder));
        }
    }

    #[test]
    fn an_incomplete_download_has_the_command_that_resumes_it() {
        let (folder, _) = cache();
        let repository = folder.path().join("models--org--name.v1");
        fs::create_dir(repository.join("blobs")).unwrap();
        fs::write(repository.join("blobs/abc.incomplete"), "").unwrap();
        let at = |commit: &str| incomplete_download(&repository.join("snapshots").join(commit));

        let rest = |download: &str| Some(IncompleteDownload { download: download.to_owned(), begun: 1 });
        assert_eq!(at(COMMITS[0]), rest("hf download org/name.v1"));
        assert_eq!(at(COMMITS[2]), rest(&format!("hf download org/name.v1 --revision {}", COMMITS[2])));
        assert_eq!(incomplete_download(&repository), None);
        assert_eq!(incomplete_download("model".as_ref()), None);
    }
}
