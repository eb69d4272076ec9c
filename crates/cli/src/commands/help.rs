//! `glm4v completions` and `glm4v man`, generated from the argument parser.

use std::fs;
use std::io::{Write, stdout};

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::{Args, Completions, Man};

const STDOUT_FAILED: &str = "cannot write to stdout";

pub(crate) fn completions(args: &Completions) -> anyhow::Result<()> {
    stdout().lock().write_all(&completion_script(args.shell)).context(STDOUT_FAILED)
}

/// Generated in memory, as clap_complete panics when it cannot write.
fn completion_script(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "glm4v", &mut script);
    script
}

pub(crate) fn man(args: &Man) -> anyhow::Result<()> {
    let Some(dir) = &args.out_dir else {
        return clap_mangen::Man::new(Args::command()).render(&mut stdout().lock()).context(STDOUT_FAILED);
    };
    let failed = || format!("{}: cannot write", dir.display());
    fs::create_dir_all(dir).with_context(failed)?;
    clap_mangen::generate_to(Args::command(), dir).with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_contain_every_command_and_flag() {
        let script = String::from_utf8(completion_script(Shell::Bash)).unwrap();

        for command in Args::command().get_subcommands() {
            let name = command.get_name();
            assert!(script.contains(&format!("glm4v,{name})")), "{name}");
            for flag in command.get_arguments().filter_map(|argument| argument.get_long()) {
                assert!(script.contains(&format!("--{flag}")), "{name} --{flag}");
            }
        }
    }

    #[test]
    fn every_command_has_a_man_page_and_the_main_page_lists_global_flags() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("man1");

        man(&Man { out_dir: Some(out.clone()) }).unwrap();

        let page = |name: &str| fs::read_to_string(out.join(name)).unwrap().replace('\\', "");
        let first = page("glm4v.1");
        let shown = |argument: &&clap::Arg| argument.is_global_set() && !argument.is_hide_set();
        let all = Args::command();
        let flags: Vec<_> = all.get_arguments().filter(shown).filter_map(clap::Arg::get_long).collect();
        assert!(flags.len() >= 5, "{flags:?}");
        for flag in flags {
            assert!(first.contains(&format!("--{flag}")), "--{flag}");
        }
        assert!(!first.contains("parse-only"));
        for command in all.get_subcommands() {
            assert!(page(&format!("glm4v-{}.1", command.get_name())).contains(".TH"));
        }
    }
}
