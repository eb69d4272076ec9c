//! `glm4v completions` and `glm4v man`: what the argument parser knows, for shells and for `man`.

use std::fs;
use std::io::{Write, stdout};

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::{Args, Completions, Man};

/// Where results go, in words.
const STDOUT: &str = "cannot write to stdout";

pub(crate) fn completions(args: &Completions) -> anyhow::Result<()> {
    stdout().lock().write_all(&script(args.shell)).context(STDOUT)
}

/// Made in memory: the generator panics when it cannot write.
fn script(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "glm4v", &mut script);
    script
}

pub(crate) fn man(args: &Man) -> anyhow::Result<()> {
    let Some(folder) = &args.out_dir else {
        return clap_mangen::Man::new(Args::command()).render(&mut stdout().lock()).context(STDOUT);
    };
    let place = || format!("{}: cannot write", folder.display());
    fs::create_dir_all(folder).with_context(place)?;
    clap_mangen::generate_to(Args::command(), folder).with_context(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_know_every_command_and_its_flags() {
        let script = String::from_utf8(script(Shell::Bash)).unwrap();

        for command in Args::command().get_subcommands() {
            let name = command.get_name();
            assert!(script.contains(&format!("glm4v,{name})")), "{name}");
            for flag in command.get_arguments().filter_map(|argument| argument.get_long()) {
                assert!(script.contains(&format!("--{flag}")), "{name} --{flag}");
            }
        }
    }

    #[test]
    fn there_is_a_man_page_for_every_command_and_the_first_has_every_global_flag() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("man1");

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
