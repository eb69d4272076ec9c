//! Devices that fail, and the cache of kernels.
//!
//! A driver that fails is played by a small library in C; without a C compiler those tests say that they were skipped. Tests of
//! a GPU run where `GLM4V_TEST_BACKEND` names one, and else say the same.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests fail and print as tests do")]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;

use burn::tensor::DType;
use glm4v_data::EvalExample;
use glm4v_model::{Backend, DeviceFault, DeviceSpec, Glm4v, Precision};
use glm4v_tests::{CommandOutput, backend, binary, command, losses, repository, train};
use glm4v_train::{
    Callback, EvalGenerator, EvalMetrics, GeneratedAnswer, Run, RunConfig, StepMetrics, TrainError,
    TrainSummary, WeightInit,
};
use serde_json::{Value, json};
use tempfile::tempdir;

/// Whether the binary was built with a backend.
fn is_compiled_in(name: &str) -> bool {
    let output = Command::new(binary()).args(["info", "--json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    report["compiled_in"].as_str().unwrap().split(", ").any(|found| found == name)
}

/// Prints why a test does not run here.
fn skip(reason: &str) {
    eprintln!("SKIPPED: {reason}");
}

/// Builds `dir/libcuda.so` of C functions; false without a compiler.
fn fake_driver(dir: &Path, source: &str) -> bool {
    let path = dir.join("driver.c");
    fs::write(&path, source).unwrap();
    let library = dir.join("libcuda.so");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &path]).status();
    built.is_ok_and(|status| status.success())
}

/// A run on CUDA that finds libraries in `dir` first.
fn on_cuda(dir: &Path) -> CommandOutput {
    let mut command = Command::new(binary());
    command.args(["info", "--backend", "cuda"]).env("LD_LIBRARY_PATH", dir);
    CommandOutput::run(command.stdin(Stdio::null()))
}

/// Text of each code that the tests use, as drivers give it.
const ERROR_STRING: &str = r#"
    int cuGetErrorString(int code, const char **text) { *text = "played by a test"; return 0; }
    int cuGetErrorName(int code, const char **text) { *text = "played"; return 0; }
"#;

#[test]
fn a_driver_that_refuses_to_begin_is_named_with_its_reason() {
    if !is_compiled_in("cuda") {
        return skip("the binary has no cuda");
    }
    let table = [
        (803, "driver and libraries do not fit together", "--backend cpu"),
        (999, "the driver cannot be started", "--backend cpu"),
        (46, "the device is in use by another process", "--backend cuda:1"),
        (3, "the driver cannot be started", "--backend cpu"),
    ];
    for (code, expected, remedy) in table {
        let dir = tempdir().unwrap();
        let source = format!(
            "{ERROR_STRING} int cuInit(unsigned flags) {{ return {code}; }} int cuDeviceGetCount(int *n) {{ *n = 0; return {code}; }}"
        );
        if !fake_driver(dir.path(), &source) {
            return skip("no C compiler (cc)");
        }

        on_cuda(dir.path()).failure(&["backend cuda cannot be used", expected, remedy]);
    }
}

#[test]
fn a_driver_without_devices_or_with_functions_missing_is_told_from_none() {
    if !is_compiled_in("cuda") {
        return skip("the binary has no cuda");
    }
    let [empty, old] = [tempdir().unwrap(), tempdir().unwrap()];
    let begins = format!("{ERROR_STRING} int cuInit(unsigned flags) {{ return 0; }}");
    let counts = format!("{begins} int cuDeviceGetCount(int *n) {{ *n = 0; return 0; }}");
    if !fake_driver(empty.path(), &counts) || !fake_driver(old.path(), &begins) {
        return skip("no C compiler (cc)");
    }

    on_cuda(empty.path()).failure(&["backend cuda finds no device"]);
    on_cuda(old.path()).failure(&["backend cuda cannot be used", "cuDeviceGetCount", "a newer driver"]);
}

#[test]
fn without_a_driver_for_vulkan_there_is_no_device() {
    if !is_compiled_in("wgpu") {
        return skip("the binary has no wgpu");
    }
    let dir = tempdir().unwrap();
    let manifest = dir.path().join("broken.json");
    let library = json!({"file_format_version": "1.0.0",
        "ICD": {"library_path": "libnot-there.so", "api_version": "1.3.0"}});
    fs::write(&manifest, library.to_string()).unwrap();

    for file in [manifest.as_path(), Path::new("/not/there.json")] {
        let mut command = Command::new(binary());
        command
            .args(["info", "--backend", "wgpu"])
            .env("VK_DRIVER_FILES", file)
            .env("VK_ICD_FILENAMES", file);
        // Where there is another graphics API, its device is found instead.
        let output = CommandOutput::run(&mut command);
        if output.code == Some(1) {
            output.failure(&["backend wgpu finds no device", "--backend cpu"]);
        } else {
            output.success();
        }
    }
}

#[test]
fn the_cpu_has_nothing_to_warm_up() {
    let mut command = Command::new(binary());
    command.current_dir(repository()).args([
        "warmup",
        "--backend",
        "cpu",
        "--config",
        "configs/models/digits",
    ]);

    let output = CommandOutput::run(&mut command).success();

    assert!(output.stdout.starts_with("nothing to do on the cpu"), "{output:?}");
}

/// `glm4v warmup` of the digits with its cache in `dir`.
fn warmup(dir: &Path) -> Command {
    let mut command = command();
    let config = repository().join("configs/models/digits");
    command.args(["warmup", "--json", "--image-size", "28x28", "--text-tokens", "8", "--config"]).arg(config);
    // Without --quiet: warnings are what is looked at.
    command.env("XDG_CACHE_HOME", dir).env("GLM4V_LOG", "glm4v_model=warn,glm4v=warn");
    command
}

fn is_gpu() -> bool {
    let gpu = backend() != Backend::Cpu;
    if !gpu {
        skip("GLM4V_TEST_BACKEND names no GPU");
    }
    gpu
}

/// Whether the suites run on software Vulkan.
fn is_software_gpu() -> bool {
    let output = CommandOutput::run(Command::new(binary()).args(["info", "--json"]));
    backend().to_string().starts_with("wgpu") && output.stdout.contains("llvmpipe")
}

/// Entries of the cache after a run; none if the binary keeps none.
fn entries(output: &CommandOutput) -> Option<u64> {
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    report["cache"]["entries"].as_u64()
}

#[test]
fn a_second_warmup_finds_all_that_the_first_chose_and_the_working_directory_stays_empty() {
    if !is_gpu() {
        return;
    }
    let [cache, place] = [tempdir().unwrap(), tempdir().unwrap()];
    let run = || CommandOutput::run(warmup(cache.path()).current_dir(place.path())).success();

    let (first, second) = (run(), run());

    let Some(kept) = entries(&first) else { return skip("the binary keeps no kernels") };
    assert!(kept > 0, "{first:?}");
    assert_eq!(entries(&second), Some(kept), "the second run chose anew");
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0, "files in the working directory");
    assert!(first.stdout.contains(cache.path().join("glm4v").to_str().unwrap()), "{first:?}");
}

#[test]
fn a_damaged_cache_is_begun_anew_with_a_warning() {
    if !is_gpu() {
        return;
    }
    let cache = tempdir().unwrap();
    let first = CommandOutput::run(&mut warmup(cache.path())).success();
    let Some(kept) = entries(&first) else { return skip("the binary keeps no kernels") };
    let dir = cache.path().join("glm4v");
    for file in fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()) {
        fs::write(&file, "not a database, though long enough to be taken for one ".repeat(200)).unwrap();
    }

    let second = CommandOutput::run(&mut warmup(cache.path())).success();

    assert!(second.stderr.contains("the kernel cache is damaged"), "{second:?}");
    assert_eq!(entries(&second), Some(kept));
}

#[test]
fn without_a_place_for_the_cache_a_run_goes_on_with_a_warning() {
    if !is_gpu() {
        return;
    }
    let dir = tempdir().unwrap();
    let file = dir.path().join("a-file");
    fs::write(&file, "").unwrap();

    let output = CommandOutput::run(&mut warmup(&file)).success();

    if !output.stdout.contains("\"cache\":null") {
        panic!("{output:?}");
    }
    if entries(&CommandOutput::run(&mut warmup(dir.path())).success()).is_some() {
        assert!(output.stderr.contains("the kernel cache cannot be written"), "{output:?}");
    }
}

#[test]
fn a_run_that_runs_out_of_memory_keeps_its_checkpoint_and_goes_on_with_smaller_batches() {
    if !is_software_gpu() {
        return skip("needs software Vulkan, whose buffers are small");
    }
    let dir = tempdir().unwrap();
    let (data, order, run) =
        (dir.path().join("data.jsonl"), dir.path().join("order.json"), dir.path().join("run"));
    // 24 records of 730 tokens: in training the scores of attention take 24 x 4 x 730 x 730 values, and software Vulkan binds 33
    // million at once.
    let text = "What digit is this? ".repeat(120);
    let record =
        json!({"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "one"}]});
    fs::write(&data, format!("{record}\n").repeat(24)).unwrap();
    let batches = |large: Vec<usize>| json!([[0], large, [1]]).to_string();
    fs::write(&order, batches((0..24).collect())).unwrap();
    let settings = [
        format!("data.train={}", data.display()),
        format!("data.batch_order={}", order.display()),
        "schedule.max_steps=3".to_owned(),
        "run.save_steps=1".to_owned(),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();

    let failed = CommandOutput::run(&mut train(&run, &settings));

    let checkpoint = run.join("checkpoints/step-1");
    failed.failure(&[
        "the device failed after step 1",
        checkpoint.to_str().unwrap(),
        "--resume",
        "data.batch_size",
    ]);
    assert_eq!(losses(&run).len(), 1);
    fs::write(&order, batches(vec![2])).unwrap();
    CommandOutput::run(train(&run, &settings).arg("--resume")).success();
    assert_eq!(losses(&run).len(), 3);
}

/// Fails as burn does where a GPU is out of memory, at the end of a step.
struct FailingDevice {
    step: usize,
    text: &'static str,
}

impl Callback for FailingDevice {
    fn on_train_begin(&mut self, _plan: &TrainSummary) {}
    fn on_step_end(&mut self, report: &StepMetrics) {
        if report.step == self.step {
            panic!("{}", self.text);
        }
    }
    fn on_drop(&mut self, _records: usize) {}
    fn on_eval_progress(&mut self, _done: usize, _total: usize) {}
    fn on_evaluate(&mut self, _summary: &EvalMetrics) {}
    fn on_save(&mut self, _dir: &Path) {}
}

/// Runs have no evaluation here.
struct NoAnswers;

impl EvalGenerator for NoAnswers {
    type Error = std::fmt::Error;

    fn generate(
        &mut self,
        _model: &Glm4v,
        _examples: &[EvalExample],
    ) -> Result<Vec<GeneratedAnswer>, std::fmt::Error> {
        Err(std::fmt::Error)
    }
}

/// Trains on the CPU, by the library, with a checkpoint every second step.
fn train_by_library(
    run: &Path,
    batch_size: usize,
    resume: bool,
    callback: &mut FailingDevice,
) -> Result<(), Box<TrainError>> {
    let mut config = RunConfig::default();
    config.model.path = repository().join("configs/models/digits");
    config.model.init = WeightInit::Random;
    config.data.dir = repository().join("datasets");
    config.data.train = "digits:train".to_owned();
    config.data.batch_size = batch_size;
    config.schedule.max_steps = 6;
    config.run.save_steps = 2;
    config.run.output_dir = run.to_owned();
    let device_spec = DeviceSpec::for_backend(Backend::Cpu, &Backend::Cpu.open().unwrap(), DType::F32);
    let run = Run::open(config, &device_spec, Precision::F32, resume, &mut |_, _| {})?;
    run.train(&mut NoAnswers, callback, &AtomicBool::new(false))?;
    Ok(())
}

#[test]
fn a_panic_of_a_device_ends_a_run_with_an_error_that_names_the_checkpoint() {
    let dir = tempdir().unwrap();
    let run = dir.path().join("run");
    let mut failing =
        FailingDevice { step: 5, text: "wgpu error: out of device memory allocating 12000000 bytes" };

    let error = train_by_library(&run, 8, false, &mut failing).unwrap_err();

    let TrainError::Device { step, checkpoint, source } = *error else { panic!("{error}") };
    assert_eq!((step, checkpoint), (5, Some(run.join("checkpoints/step-4"))));
    assert!(matches!(source, DeviceFault::OutOfMemory { requested: Some(12_000_000), .. }), "{source}");
    train_by_library(&run, 4, true, &mut FailingDevice { step: 0, text: "" }).unwrap();
    assert!(run.join("final/model.safetensors").exists());
}
