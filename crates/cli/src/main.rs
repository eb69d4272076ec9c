//! The `glm4v` command: parse, call, print.

/// `eprintln!` that ignores write errors: a run must not end because the reader of `2>&1 | head` has exited.
macro_rules! print_status {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

mod args;
mod commands;
mod device;
mod eval_generator;
mod failure;
mod features;
mod interrupt;
mod kernels;
mod progress;
mod remedy;
mod threads;

use std::process::ExitCode;

use anstream::{AutoStream, ColorChoice};
use clap::{CommandFactory, FromArgMatches};
use glm4v_kernels::allocator;

use args::{Args, Command};
use glm4v_model::{ComputeError, fault};

/// Training frees and allocates the same large blocks thousands of times a second; the system's allocator returns them
/// to the kernel each time, which clears them again. This one keeps them, see [`keep_freed_memory`](allocator::keep_freed_memory).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    allocator::keep_freed_memory();
    let matches = Args::command().get_matches();
    let args = Args::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let names: Vec<&str> = command_names(&matches);
    failure::install_panic_hook();
    init_log(args.global.verbose, args.global.quiet);
    let done = interrupt::handle_signals()
        .and_then(|()| threads::with_threads(args.global.threads, || guarded_run(&args)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if failure::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            print_status!("error: {}", remedy::line(&error, &names));
            interrupt::exit_code(&error).unwrap_or(ExitCode::FAILURE)
        }
    }
}

/// The name of the command, and that of its own command if it has some.
fn command_names(matches: &clap::ArgMatches) -> Vec<&str> {
    let Some((name, inner)) = matches.subcommand() else { return Vec::new() };
    [vec![name], command_names(inner)].concat()
}

/// Runs the command; a panic that a GPU caused is an error.
fn guarded_run(args: &Args) -> anyhow::Result<()> {
    fault::guard(|| run(args)).unwrap_or_else(|fault| Err(ComputeError::from(fault).into()))
}

fn run(args: &Args) -> anyhow::Result<()> {
    if args.global.parse_only {
        return commands::parse_only(&args.command);
    }
    match &args.command {
        Command::Train(train) => commands::train(train, &args.global),
        Command::Generate(generate) => commands::generate(generate, &args.global),
        Command::Eval(eval) => commands::eval(eval, &args.global),
        Command::Data(data) => commands::data(data, &args.global),
        Command::Init(init) => commands::init(init, &args.global),
        Command::Embed(embed) => commands::embed(embed, &args.global),
        Command::Convert(convert) => commands::convert(convert, &args.global),
        Command::Merge(merge) => commands::merge(merge, &args.global),
        Command::Trace(trace) => commands::trace(trace, &args.global),
        Command::Info(info) => commands::info(info, &args.global),
        Command::Selftest(selftest) => commands::selftest(selftest, &args.global),
        Command::Bench(bench) => commands::bench(bench, &args.global),
        Command::Warmup(warmup) => commands::warmup(warmup, &args.global),
        Command::Completions(completions) => commands::completions(completions),
        Command::Man(man) => commands::man(man),
    }
}

fn init_log(verbose: u8, quiet: bool) {
    let level = match (quiet, verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, _) => "debug",
    };
    // Only our own crates: messages of wgpu and other dependencies are for their developers.
    let filter = format!(
        "off,glm4v={level},glm4v_model={level},glm4v_processor={level},glm4v_weights={level},glm4v_data={level},glm4v_train={level},glm4v_infer={level}"
    );
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("GLM4V_LOG").unwrap_or_else(|_| filter.into()),
        )
        .with_writer(std::io::stderr)
        .with_ansi(AutoStream::choice(&std::io::stderr()) != ColorChoice::Never)
        .log_internal_errors(false) // they go through eprintln!, which panics on a closed stderr
        .without_time()
        .with_target(false)
        .init();
}
