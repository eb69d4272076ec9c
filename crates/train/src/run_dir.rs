//! The run directory: its lock, its contents, and the checkpoint that a run resumes from.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use glm4v_weights::{WeightsError, remove_leftovers};

use crate::checkpoint::Checkpoints;
use crate::error::{RunDirError, TrainError};
use crate::layout::{CHECKPOINTS, FINAL, LOCK, METRICS};
use crate::metrics::LoggedProgress;

/// Contents of a run directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct RunState {
    /// Last step in the metrics; 0 without one.
    step: usize,
    /// Step of the last evaluation in the metrics.
    evaluated: Option<usize>,
    /// Step and path of the newest checkpoint.
    checkpoint: Option<(usize, PathBuf)>,
    /// Whether final weights exist.
    finished: bool,
}

impl RunState {
    fn read(dir: &Path) -> Result<Self, WeightsError> {
        let metrics = LoggedProgress::read(&dir.join(METRICS));
        Ok(Self {
            step: metrics.step,
            evaluated: metrics.evaluated,
            checkpoint: Checkpoints::new(dir).list()?.pop(),
            finished: dir.join(FINAL).exists(),
        })
    }

    fn is_empty(&self) -> bool {
        self.step == 0 && self.checkpoint.is_none() && !self.finished
    }
}

/// Requirements of a run on its directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ResumeRequest {
    /// Whether to continue from the newest checkpoint; otherwise the directory must not hold a run.
    pub(crate) resume: bool,
    /// Steps of the whole run; none before the datasets are read, as epochs depend on them.
    pub(crate) max_steps: Option<usize>,
    /// Whether the run ends with an evaluation.
    pub(crate) evaluates: bool,
}

/// A run directory that no other process writes to.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    /// Open and locked: the system releases the lock however the process ends.
    lock: Option<File>,
}

impl RunDir {
    /// Opens a directory that need not exist, and locks it if it holds a run.
    pub(crate) fn open(path: &Path) -> Result<Self, TrainError> {
        let mut dir = Self { path: path.to_owned(), lock: None };
        if !RunState::read(path)?.is_empty() {
            dir.lock()?;
        }
        Ok(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Creates the directory if needed, locks it, and writes a probe file: a directory without write permission must not
    /// cost hours of training first.
    pub(crate) fn create_and_lock(&mut self) -> Result<(), TrainError> {
        let failed = |source| TrainError::OutputDir { dir: self.path.clone(), source };
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
        let mut file = file.map_err(|source| TrainError::OutputDir { dir: self.path.clone(), source })?;
        match file.try_lock() {
            Ok(()) => {
                // The id is for people and for the error of a second run; the lock itself is what excludes others.
                let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
            }
            Err(TryLockError::WouldBlock) => {
                let process = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
                return Err(RunDirError::InUse { dir: self.path.clone(), process }.into());
            }
            Err(TryLockError::Error(error)) => tracing::warn!(
                "{}: this file system cannot lock files ({error}); make sure that no other run writes here",
                self.path.display()
            ),
        }
        self.lock = Some(file);
        Ok(())
    }

    /// The checkpoint to resume from; none for a new run.
    pub(crate) fn resume_point(&self, request: ResumeRequest) -> Result<Option<PathBuf>, TrainError> {
        let state = RunState::read(&self.path)?;
        let checkpoint = match (request.resume, &state.checkpoint) {
            (false, _) if state.is_empty() => return Ok(None),
            (true, Some(checkpoint)) => checkpoint,
            _ => return Err(self.refusal(request.resume, &state).into()),
        };
        if let Some(steps) = request.max_steps {
            self.check_max_steps(&state, checkpoint, steps, request.evaluates)?;
        }
        Ok(Some(checkpoint.1.clone()))
    }

    /// Why a run in this state neither begins nor resumes.
    fn refusal(&self, resume: bool, state: &RunState) -> RunDirError {
        let dir = self.path.clone();
        if !resume {
            let checkpoint = state.checkpoint.as_ref().map(|(step, _)| *step);
            return RunDirError::RunExists { dir, checkpoint, finished: state.finished };
        }
        if state.finished {
            let adapter = dir.join(FINAL).join("adapter_config.json").exists();
            return RunDirError::NoCheckpoint { dir, adapter };
        }
        match state.is_empty() {
            true => RunDirError::Empty { dir },
            false => RunDirError::EndedEarly { dir },
        }
    }

    /// Checks that a run of `steps` steps has something left to do after a checkpoint.
    fn check_max_steps(
        &self,
        state: &RunState,
        (step, checkpoint): &(usize, PathBuf),
        steps: usize,
        evaluates: bool,
    ) -> Result<(), RunDirError> {
        // Without final weights, steps after the checkpoint are lost and do not count.
        let done = if state.finished { state.step.max(*step) } else { *step };
        let (dir, checkpoint) = (self.path.clone(), checkpoint.clone());
        if steps < done {
            return Err(RunDirError::FewerSteps { dir, done, steps });
        }
        if state.finished && steps == done && (!evaluates || state.evaluated == Some(done)) {
            return Err(RunDirError::Finished { dir, done, checkpoint });
        }
        Ok(())
    }

    /// Error of a checkpoint that cannot be read, with the previous checkpoint as an alternative.
    pub(crate) fn damaged(&self, checkpoint: &Path, source: impl Into<TrainError>) -> TrainError {
        let all = Checkpoints::new(&self.path).list().unwrap_or_default();
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

    /// A run directory with metrics of `steps` steps, empty checkpoints, and final weights if `finished`.
    fn run_dir(steps: usize, checkpoints: &[usize], finished: bool) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let lines: String = (1..=steps).map(|step| format!("{{\"step\":{step}}}\n")).collect();
        fs::write(dir.path().join(METRICS), lines).unwrap();
        for step in checkpoints {
            fs::create_dir_all(dir.path().join(format!("checkpoints/step-{step}"))).unwrap();
        }
        if finished {
            fs::create_dir(dir.path().join(FINAL)).unwrap();
        }
        dir
    }

    /// Name of the checkpoint that a run begins from, or its error without the directory.
    fn begin(dir: &Path, resume: bool, max_steps: Option<usize>) -> Result<Option<String>, String> {
        let request = ResumeRequest { resume, max_steps, evaluates: false };
        let begin = RunDir::open(dir).and_then(|run| run.resume_point(request));
        let name = |path: PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        begin.map(|found| found.map(name)).map_err(|error| {
            error.to_string().strip_prefix(&format!("{}: ", dir.display())).unwrap().to_owned()
        })
    }

    /// The contents of a run directory, a request, and the checkpoint to begin from or the start of the error.
    struct Case<'a> {
        /// Steps in the metrics.
        logged: usize,
        checkpoints: &'a [usize],
        finished: bool,
        resume: bool,
        /// Steps asked for.
        max_steps: usize,
        expected: Result<Option<&'a str>, &'a str>,
    }

    /// Whether to resume, steps asked for, the expected result.
    type Request<'a> = (bool, usize, Result<Option<&'a str>, &'a str>);

    /// Cases of one directory: steps in the metrics, checkpoints, final weights.
    fn cases<'a>(
        (logged, checkpoints, finished): (usize, &'a [usize], bool),
        requests: &[Request<'a>],
    ) -> Vec<Case<'a>> {
        let case = |&(resume, max_steps, expected)| Case {
            logged,
            checkpoints,
            finished,
            resume,
            max_steps,
            expected,
        };
        requests.iter().map(case).collect()
    }

    fn check(case: &Case<'_>) {
        let Case { logged, checkpoints, finished, resume, max_steps, expected } = case;
        let name = format!(
            "{logged} steps, {checkpoints:?}, final {finished}, resumed {resume}, {max_steps} steps asked for"
        );
        let dir = run_dir(*logged, checkpoints, *finished);

        let found = begin(dir.path(), *resume, Some(*max_steps));

        match expected {
            Ok(begins) => assert_eq!(found, Ok(begins.map(str::to_owned)), "{name}"),
            Err(text) => {
                assert!(found.as_ref().is_err_and(|error| error.starts_with(text)), "{name}: {found:?}")
            }
        }
        // The check before the number of steps is known must not refuse a run that would begin.
        if let Ok(begins) = expected {
            assert_eq!(begin(dir.path(), *resume, None), Ok(begins.map(str::to_owned)), "{name}");
        }
    }

    #[test]
    fn an_unfinished_run_begins_or_resumes_or_is_refused_with_the_reason() {
        const NEVER_SAVED: &str = "the run ended before its first checkpoint, so that nothing";
        const TOO_FEW: &str = "40 steps are done, and the schedule has 30; needed: at least 40";
        let all = [
            cases((0, &[], false), &[(false, 50, Ok(None)), (true, 50, Err("holds no run to resume"))]),
            cases(
                (7, &[], false),
                &[
                    (false, 50, Err("holds a run that ended before its first checkpoint")),
                    (true, 50, Err(NEVER_SAVED)),
                ],
            ),
            cases(
                (45, &[20, 40], false),
                &[
                    (false, 50, Err("holds a run with a checkpoint after step 40")),
                    (true, 50, Ok(Some("step-40"))),
                    (true, 80, Ok(Some("step-40"))),
                    (true, 40, Ok(Some("step-40"))), // only the final weights are missing
                    (true, 42, Ok(Some("step-40"))),
                    (true, 30, Err(TOO_FEW)),
                ],
            ),
            cases((0, &[20, 40], false), &[(true, 50, Ok(Some("step-40")))]), // metrics were removed
        ];
        assert_eq!(all.iter().map(Vec::len).sum::<usize>(), 11);
        all.iter().flatten().for_each(check);
    }

    #[test]
    fn a_finished_run_is_extended_or_is_refused_with_the_reason() {
        const NO_CHECKPOINT: &str = "the run is finished and has no checkpoint to resume from";
        let all = [
            cases(
                (50, &[], true),
                &[
                    (false, 50, Err("holds a finished run, its weights are in final")),
                    (true, 50, Err(NO_CHECKPOINT)),
                    (true, 80, Err(NO_CHECKPOINT)),
                ],
            ),
            cases(
                (50, &[20, 40], true),
                &[
                    (false, 50, Err("holds a run with weights in final and a checkpoint after step 40")),
                    (
                        true,
                        50,
                        Err("the run is finished after 50 steps, its weights are in final; needed: more"),
                    ),
                    (true, 80, Ok(Some("step-40"))),
                    (true, 45, Err("50 steps are done, and the schedule has 45")),
                ],
            ),
            cases(
                (50, &[40, 50], true),
                &[
                    (true, 50, Err("the run is finished after 50 steps")),
                    (true, 51, Ok(Some("step-50"))),
                    (true, 49, Err("50 steps are done, and the schedule has 49")),
                ],
            ),
            cases((50, &[5, 10, 40], true), &[(true, 51, Ok(Some("step-40")))]), // by number, not by name
        ];
        assert_eq!(all.iter().map(Vec::len).sum::<usize>(), 11);
        all.iter().flatten().for_each(check);
    }

    #[test]
    fn a_finished_run_without_its_last_evaluation_resumes_with_it() {
        let dir = run_dir(50, &[50], true);
        let run = RunDir::open(dir.path()).unwrap();
        let request = ResumeRequest { resume: true, max_steps: Some(50), evaluates: true };
        assert!(run.resume_point(request).unwrap().is_some());

        let mut metrics = fs::read_to_string(dir.path().join(METRICS)).unwrap();
        metrics.push_str("{\"step\":50,\"samples\":3}\n");
        fs::write(dir.path().join(METRICS), metrics).unwrap();

        assert!(run.resume_point(request).unwrap_err().to_string().contains("finished after 50 steps"));
    }

    #[test]
    fn advice_for_a_finished_run_without_checkpoints_names_its_weights() {
        for (file, key) in [("config.json", "model.path"), ("adapter_config.json", "lora.adapter_path")] {
            let dir = run_dir(5, &[], true);
            let last = dir.path().join(FINAL);
            fs::write(last.join(file), "").unwrap();

            let error = begin(dir.path(), true, Some(9)).unwrap_err();

            assert!(error.contains(&format!("with {key} = \"{}\"", last.display())), "{error}");
        }
    }

    #[test]
    fn a_run_directory_is_locked_until_its_run_ends() {
        let dir = tempfile::tempdir().unwrap();
        let locked = || RunDir::open(dir.path()).and_then(|mut run| run.create_and_lock().map(|()| run));
        let first = locked().unwrap();

        let error = locked().unwrap_err().to_string();

        let process = std::process::id();
        assert!(
            error.contains(&format!("in use by another run, process {process}; needed: the end of that run")),
            "{error}"
        );
        drop(first);
        locked().unwrap();
    }

    #[test]
    fn an_older_checkpoint_is_the_one_before_the_damaged_one() {
        let dir = run_dir(50, &[5, 10, 40], false);
        let run = RunDir::open(dir.path()).unwrap();
        let path = |step: usize| dir.path().join(format!("checkpoints/step-{step}"));
        let older = |step| match run.damaged(&path(step), RunDirError::Empty { dir: PathBuf::new() }) {
            TrainError::DamagedCheckpoint { older, .. } => older,
            other => panic!("{other}"),
        };

        assert_eq!([older(40), older(10), older(5)], [Some(path(10)), Some(path(5)), None]);
    }
}
