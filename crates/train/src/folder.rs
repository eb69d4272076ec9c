//! The folder of a run: who may write there, what lies in it, and where a run in it begins.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use glm4v_weights::{WeightsError, remove_leftovers};

use crate::TrainError;
use crate::checkpoint::{CHECKPOINTS, Checkpoints};
use crate::metrics::progress;

/// Name of the file with losses.
pub(crate) const METRICS: &str = "metrics.jsonl";
/// Name of the folder with the final weights.
pub(crate) const FINAL: &str = "final";
/// Name of the file that a run keeps locked while it lives; the process id is in it.
const LOCK: &str = ".lock";

/// Why a run cannot begin in its folder.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RunFolderError {
    /// Another process trains there.
    #[error(
        "{}: in use by {}; needed: the end of that run, or another run.output_dir",
        folder.display(), describe_process(*process)
    )]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// Its id, where that can be read.
        process: Option<u32>,
    },
    /// There is a run already, and this one was not to go on with it.
    #[error("{}: holds {}", folder.display(), describe_run(*checkpoint, *finished))]
    RunExists {
        /// The folder.
        folder: PathBuf,
        /// Steps before its newest checkpoint.
        checkpoint: Option<usize>,
        /// Whether it has final weights.
        finished: bool,
    },
    /// There is no run to go on with.
    #[error("{}: holds no run to resume", folder.display())]
    Empty {
        /// The folder.
        folder: PathBuf,
    },
    /// The run came to no checkpoint.
    #[error("{}: the run ended before its first checkpoint, so that nothing can be resumed", folder.display())]
    EndedEarly {
        /// The folder.
        folder: PathBuf,
    },
    /// The run is finished, and has no checkpoint from which more steps could follow.
    #[error(
        "{}: the run is finished and has no checkpoint to resume from (run.save_steps = 0 keeps none); to train its weights \
         further, start a run in another run.output_dir with {} = \"{}\" and model.init = \"weights\"",
        folder.display(), if *adapter { "lora.adapter_path" } else { "model.path" }, folder.join(FINAL).display()
    )]
    NoCheckpoint {
        /// The folder.
        folder: PathBuf,
        /// Whether the final weights are those of an adapter.
        adapter: bool,
    },
    /// The run is finished: nothing is left to do.
    #[error(
        "{}: the run is finished after {done} steps, its weights are in {FINAL}; needed: more than {done} steps \
         (schedule.max_steps or schedule.epochs), to go on from {}",
        folder.display(), checkpoint.display()
    )]
    Finished {
        /// The folder.
        folder: PathBuf,
        /// Its steps.
        done: usize,
        /// Its newest checkpoint.
        checkpoint: PathBuf,
    },
    /// More steps are done than the run should have.
    #[error(
        "{}: {done} steps are done, and the schedule has {steps}; needed: at least {done} (schedule.max_steps or \
         schedule.epochs), or another run.output_dir",
        folder.display()
    )]
    FewerSteps {
        /// The folder.
        folder: PathBuf,
        /// Steps done.
        done: usize,
        /// Steps that the run should have.
        steps: usize,
    },
}

fn describe_process(process: Option<u32>) -> String {
    match process {
        Some(id) => format!("another run, process {id}"),
        None => "another run".to_owned(),
    }
}

fn describe_run(checkpoint: Option<usize>, finished: bool) -> String {
    match (checkpoint, finished) {
        (None, false) => "a run that ended before its first checkpoint".to_owned(),
        (None, true) => format!("a finished run, its weights are in {FINAL}"),
        (Some(step), false) => format!("a run with a checkpoint after step {step}"),
        (Some(step), true) => format!("a run with weights in {FINAL} and a checkpoint after step {step}"),
    }
}

/// What a run left in its folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Contents {
    /// The last step that metrics tell of.
    step: usize,
    /// The step after which there was the last evaluation.
    evaluated: Option<usize>,
    /// The newest checkpoint, by its step.
    checkpoint: Option<(usize, PathBuf)>,
    /// Whether there are final weights.
    finished: bool,
}

impl Contents {
    fn of(folder: &Path) -> Result<Self, WeightsError> {
        let metrics = progress(&folder.join(METRICS));
        Ok(Self {
            step: metrics.step,
            evaluated: metrics.evaluated,
            checkpoint: Checkpoints::of(folder).list()?.pop(),
            finished: folder.join(FINAL).exists(),
        })
    }

    fn is_empty(&self) -> bool {
        self.step == 0 && self.checkpoint.is_none() && !self.finished
    }
}

/// How much a run should do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Goal {
    /// Its steps; none while that is not known.
    pub(crate) steps: Option<usize>,
    /// Whether it ends with an evaluation.
    pub(crate) evaluates: bool,
}

/// The folder of a run, which no other process writes to.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
    /// Locked as long as it is open: however the process ends, the lock ends with it.
    lock: Option<File>,
}

impl RunFolder {
    /// Looks at a folder, and keeps other runs out if there is one in it.
    pub(crate) fn open(path: &Path) -> Result<Self, TrainError> {
        let mut folder = Self { path: path.to_owned(), lock: None };
        if !Contents::of(path)?.is_empty() {
            folder.lock()?;
        }
        Ok(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the folder if it is not there, keeps other runs out, and shows that it can be written to, before hours are
    /// spent.
    pub(crate) fn claim(&mut self) -> Result<(), TrainError> {
        let failed = |source| TrainError::RunFolder { folder: self.path.clone(), source };
        fs::create_dir_all(&self.path).map_err(failed)?;
        let probe = self.path.join(format!(".{}.probe", std::process::id()));
        fs::write(&probe, "").and_then(|()| fs::remove_file(&probe)).map_err(failed)?;
        self.lock()?;
        remove_leftovers(&self.path);
        remove_leftovers(&self.path.join(CHECKPOINTS));
        Ok(())
    }

    fn lock(&mut self) -> Result<(), TrainError> {
        if self.lock.is_some() {
            return Ok(());
        }
        let path = self.path.join(LOCK);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = file.map_err(|source| TrainError::RunFolder { folder: self.path.clone(), source })?;
        match file.try_lock() {
            Ok(()) => {
                // For people alone: that the lock is held is what counts.
                let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
            }
            Err(TryLockError::WouldBlock) => {
                let process = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
                return Err(RunFolderError::InUse { folder: self.path.clone(), process }.into());
            }
            Err(TryLockError::Error(error)) => tracing::warn!(
                "{}: this file system cannot lock files ({error}); make sure that no other run writes here",
                self.path.display()
            ),
        }
        self.lock = Some(file);
        Ok(())
    }

    /// Where the run begins: after a checkpoint, or at its first step.
    pub(crate) fn beginning(&self, resume: bool, goal: Goal) -> Result<Option<PathBuf>, TrainError> {
        let contents = Contents::of(&self.path)?;
        let checkpoint = match (resume, &contents.checkpoint) {
            (false, _) if contents.is_empty() => return Ok(None),
            (true, Some(checkpoint)) => checkpoint,
            _ => return Err(self.refusal(resume, &contents).into()),
        };
        if let Some(steps) = goal.steps {
            self.check_goal(&contents, checkpoint, steps, goal.evaluates)?;
        }
        Ok(Some(checkpoint.1.clone()))
    }

    /// Why a run that holds this does not begin, or has nothing to go on from.
    fn refusal(&self, resume: bool, contents: &Contents) -> RunFolderError {
        let folder = self.path.clone();
        if !resume {
            let checkpoint = contents.checkpoint.as_ref().map(|(step, _)| *step);
            return RunFolderError::RunExists { folder, checkpoint, finished: contents.finished };
        }
        if contents.finished {
            let adapter = folder.join(FINAL).join("adapter_config.json").exists();
            return RunFolderError::NoCheckpoint { folder, adapter };
        }
        match contents.is_empty() {
            true => RunFolderError::Empty { folder },
            false => RunFolderError::EndedEarly { folder },
        }
    }

    /// Whether there is something to do after a checkpoint.
    fn check_goal(
        &self,
        contents: &Contents,
        (step, checkpoint): &(usize, PathBuf),
        steps: usize,
        evaluates: bool,
    ) -> Result<(), RunFolderError> {
        // What was done after the checkpoint of a run without final weights is lost, and counts for nothing.
        let done = if contents.finished { contents.step.max(*step) } else { *step };
        let (folder, checkpoint) = (self.path.clone(), checkpoint.clone());
        if steps < done {
            return Err(RunFolderError::FewerSteps { folder, done, steps });
        }
        if contents.finished && steps == done && (!evaluates || contents.evaluated == Some(done)) {
            return Err(RunFolderError::Finished { folder, done, checkpoint });
        }
        Ok(())
    }

    /// An error that says what to do about a checkpoint that cannot be read.
    pub(crate) fn damaged(&self, checkpoint: &Path, source: impl Into<TrainError>) -> TrainError {
        let all = Checkpoints::of(&self.path).list().unwrap_or_default();
        let older = all.into_iter().map(|(_, path)| path).take_while(|path| path != checkpoint).last();
        TrainError::DamagedCheckpoint {
            checkpoint: checkpoint.to_owned(),
            older,
            source: Box::new(source.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with checkpoints after these steps, metrics of so many, and final weights or none.
    fn folder(steps: usize, checkpoints: &[usize], finished: bool) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let lines: String = (1..=steps).map(|step| format!("{{\"step\":{step}}}\n")).collect();
        fs::write(folder.path().join(METRICS), lines).unwrap();
        for step in checkpoints {
            fs::create_dir_all(folder.path().join(format!("checkpoints/step-{step}"))).unwrap();
        }
        if finished {
            fs::create_dir(folder.path().join(FINAL)).unwrap();
        }
        folder
    }

    fn beginning(folder: &Path, resume: bool, steps: Option<usize>) -> Result<Option<String>, String> {
        let begin =
            RunFolder::open(folder).and_then(|run| run.beginning(resume, Goal { steps, evaluates: false }));
        let name = |path: PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        begin.map(|found| found.map(name)).map_err(|error| {
            error.to_string().strip_prefix(&format!("{}: ", folder.display())).unwrap().to_owned()
        })
    }

    #[test]
    fn every_run_begins_where_it_can_or_says_what_can_be_done() {
        // Steps in the metrics, checkpoints, final weights; resumed or not, steps wanted; how it begins or what is said.
        type Case<'a> = (usize, &'a [usize], bool, bool, usize, Result<Option<&'a str>, &'a str>);
        let cases: [Case<'_>; 22] = [
            (0, &[], false, false, 50, Ok(None)),
            (0, &[], false, true, 50, Err("holds no run to resume")),
            (7, &[], false, false, 50, Err("holds a run that ended before its first checkpoint")),
            (7, &[], false, true, 50, Err("the run ended before its first checkpoint, so that nothing")),
            (45, &[20, 40], false, false, 50, Err("holds a run with a checkpoint after step 40")),
            (45, &[20, 40], false, true, 50, Ok(Some("step-40"))),
            (45, &[20, 40], false, true, 80, Ok(Some("step-40"))),
            (45, &[20, 40], false, true, 40, Ok(Some("step-40"))), // only the final weights are missing
            (45, &[20, 40], false, true, 42, Ok(Some("step-40"))),
            (
                45,
                &[20, 40],
                false,
                true,
                30,
                Err("40 steps are done, and the schedule has 30; needed: at least 40"),
            ),
            (0, &[20, 40], false, true, 50, Ok(Some("step-40"))), // metrics were removed
            (50, &[], true, false, 50, Err("holds a finished run, its weights are in final")),
            (50, &[], true, true, 50, Err("the run is finished and has no checkpoint to resume from")),
            (50, &[], true, true, 80, Err("the run is finished and has no checkpoint to resume from")),
            (
                50,
                &[20, 40],
                true,
                false,
                50,
                Err("holds a run with weights in final and a checkpoint after step 40"),
            ),
            (
                50,
                &[20, 40],
                true,
                true,
                50,
                Err("the run is finished after 50 steps, its weights are in final; needed: more"),
            ),
            (50, &[20, 40], true, true, 80, Ok(Some("step-40"))),
            (50, &[20, 40], true, true, 45, Err("50 steps are done, and the schedule has 45")),
            (50, &[40, 50], true, true, 50, Err("the run is finished after 50 steps")),
            (50, &[40, 50], true, true, 51, Ok(Some("step-50"))),
            (50, &[40, 50], true, true, 49, Err("50 steps are done, and the schedule has 49")),
            (50, &[5, 10, 40], true, true, 51, Ok(Some("step-40"))), // by number, not by name
        ];
        for (steps, checkpoints, finished, resume, wanted, expected) in cases {
            let case = format!(
                "{steps} steps, {checkpoints:?}, final {finished}, resumed {resume}, {wanted} wanted"
            );
            let folder = folder(steps, checkpoints, finished);

            let found = beginning(folder.path(), resume, Some(wanted));

            match expected {
                Ok(begins) => assert_eq!(found, Ok(begins.map(str::to_owned)), "{case}"),
                Err(words) => {
                    assert!(found.as_ref().is_err_and(|said| said.starts_with(words)), "{case}: {found:?}")
                }
            }
            // What is known before the steps are refuses nothing that would begin.
            if let Ok(begins) = expected {
                assert_eq!(beginning(folder.path(), resume, None), Ok(begins.map(str::to_owned)), "{case}");
            }
        }
    }

    #[test]
    fn a_finished_run_without_its_last_evaluation_goes_on_to_it() {
        let folder = folder(50, &[50], true);
        let run = RunFolder::open(folder.path()).unwrap();
        let goal = Goal { steps: Some(50), evaluates: true };
        assert!(run.beginning(true, goal).unwrap().is_some());

        let mut metrics = fs::read_to_string(folder.path().join(METRICS)).unwrap();
        metrics.push_str("{\"step\":50,\"samples\":3}\n");
        fs::write(folder.path().join(METRICS), metrics).unwrap();

        assert!(run.beginning(true, goal).unwrap_err().to_string().contains("finished after 50 steps"));
    }

    #[test]
    fn advice_for_a_finished_run_without_checkpoints_names_its_weights() {
        for (file, key) in [("config.json", "model.path"), ("adapter_config.json", "lora.adapter_path")] {
            let folder = folder(5, &[], true);
            let last = folder.path().join(FINAL);
            fs::write(last.join(file), "").unwrap();

            let said = beginning(folder.path(), true, Some(9)).unwrap_err();

            assert!(said.contains(&format!("with {key} = \"{}\"", last.display())), "{said}");
        }
    }

    #[test]
    fn a_folder_belongs_to_one_run_at_a_time_and_to_the_next_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let claim = || RunFolder::open(folder.path()).and_then(|mut run| run.claim().map(|()| run));
        let first = claim().unwrap();

        let said = claim().unwrap_err().to_string();

        let process = std::process::id();
        assert!(
            said.contains(&format!("in use by another run, process {process}; needed: the end of that run")),
            "{said}"
        );
        drop(first);
        claim().unwrap();
    }

    #[test]
    fn an_older_checkpoint_is_the_one_before_the_damaged_one() {
        let folder = folder(50, &[5, 10, 40], false);
        let run = RunFolder::open(folder.path()).unwrap();
        let of = |step: usize| folder.path().join(format!("checkpoints/step-{step}"));
        let older = |step| match run.damaged(&of(step), RunFolderError::Empty { folder: PathBuf::new() }) {
            TrainError::DamagedCheckpoint { older, .. } => older,
            other => panic!("{other}"),
        };

        assert_eq!([older(40), older(10), older(5)], [Some(of(10)), Some(of(5)), None]);
    }
}
