//! The `glm4v` command: parse, call, print.

/// `eprintln!` that does not mind when nobody listens: a run must not end because `2>&1 | head` has seen enough.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

mod answering;
mod args;
mod commands;
mod device;
mod failure;
mod interrupt;
mod progress;
mod remedy;
mod stored;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use args::{Args, Command};

/// Training frees and takes the same large blocks thousands of times a second; the system's allocator hands them back
/// to the kernel each time and has them cleared again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let matches = Args::command().get_matches();
    let args = Args::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let name = matches.subcommand_name().unwrap_or_default();
    failure::report_panics();
    init_log(args.global.verbose, args.global.quiet);
    match device::with_threads(args.global.threads, || run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if failure::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            say!("error: {}", remedy::line(&error, name));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    if args.global.parse_only {
        return commands::parse_only(&args.command);
    }
    match &args.command {
        Command::Train(train) => commands::train(train, &args.global),
        Command::Generate(generate) => commands::generate(generate, &args.global),
        Command::Eval(eval) => commands::eval(eval, &args.global),
        Command::Init(init) => commands::init(init, &args.global),
        Command::Embed(embed) => commands::embed(embed, &args.global),
        Command::Convert(convert) => commands::convert(convert, &args.global),
        Command::Merge(merge) => commands::merge(merge, &args.global),
        Command::Trace(trace) => commands::trace(trace, &args.global),
        Command::Info(info) => commands::info(info, &args.global),
    }
}

fn init_log(verbose: u8, quiet: bool) {
    let level = match (quiet, verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, _) => "debug",
    };
    // Only our own crates: what wgpu and its kin have to say is for their developers.
    let filter = format!(
        "off,glm4v={level},glm4v_model={level},glm4v_processor={level},glm4v_weights={level},glm4v_data={level},glm4v_train={level},glm4v_infer={level}"
    );
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("GLM4V_LOG").unwrap_or_else(|_| filter.into()),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .log_internal_errors(false) // that is said with eprintln!
        .without_time()
        .with_target(false)
        .init();
}
