//! `kubectl sg completion`: for the shell that runs `kubectl-sg`; kubectl itself asks `kubectl_complete-sg`.

use super::output::Outcome;
use clap_complete::Shell;

/// For which shell.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The shell.
    #[arg(value_enum)]
    shell: Kind,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Kind {
    Bash,
    Zsh,
    Fish,
}

/// Prints the script.
pub fn run(args: &Args) -> anyhow::Result<Outcome> {
    let shell = match args.shell {
        Kind::Bash => Shell::Bash,
        Kind::Zsh => Shell::Zsh,
        Kind::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    // Named as the file is: shells complete what is typed first.
    let mut command = super::command().bin_name("kubectl-sg");
    clap_complete::generate(shell, &mut command, "kubectl-sg", &mut script);
    Ok(Outcome::yes(String::from_utf8(script)?))
}

/// Answers kubectl, which hands over the words behind `kubectl sg`: one candidate a line, and then a directive, of
/// which 4 is "no files" and 0 is "files will do".
pub fn candidates(words: &[String]) -> String {
    let mut command = super::command();
    command.build();
    let (last, before) = match words.split_last() {
        Some((last, before)) => (last.as_str(), before),
        None => ("", [].as_slice()),
    };
    let named = before.iter().find(|word| !word.starts_with('-'));
    let within = named.and_then(|name| command.find_subcommand(name));
    let current = within.unwrap_or(&command);
    let long = |arg: &clap::Arg| arg.get_long().map(|long| format!("--{long}"));
    let mut found: Vec<String> = Vec::new();
    // The value of the flag before, where it takes one of a few.
    let flag = before.last().and_then(|word| {
        current.get_arguments().find(|arg| {
            long(arg).as_ref() == Some(word) || arg.get_short().is_some_and(|short| *word == format!("-{short}"))
        })
    });
    if let Some(flag) = flag.filter(|flag| flag.get_action().takes_values()) {
        found.extend(flag.get_possible_values().iter().map(|value| value.get_name().to_owned()));
    } else if last.starts_with('-') {
        found.extend(current.get_arguments().filter_map(long));
    } else if within.is_none() {
        found.extend(current.get_subcommands().map(|sub| sub.get_name().to_owned()));
    } else {
        let positional = current.get_positionals().next();
        found.extend(
            positional.iter().flat_map(|arg| arg.get_possible_values()).map(|value| value.get_name().to_owned()),
        );
    }
    found.retain(|candidate| candidate.starts_with(last));
    let directive = if found.is_empty() { 0 } else { 4 };
    found.push(format!(":{directive}"));
    found.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(line: &str) -> String {
        candidates(&line.split(' ').map(str::to_owned).collect::<Vec<_>>()).replace('\n', " ")
    }

    #[test]
    fn kubectl_hears_what_comes_next() {
        assert_eq!(complete("ef"), "effective :4 ");
        assert_eq!(complete("list -o "), "table wide json yaml :4 ");
        assert_eq!(complete("list --output j"), "json :4 ");
        assert_eq!(complete("completion f"), "fish :4 ");
        assert!(complete("allow web --t").starts_with("--tcp --to --timeout :4"), "{}", complete("allow web --t"));
        assert_eq!(complete("diff -f "), ":0 ", "a file");
        assert!(complete("").contains("explain") && complete("").ends_with(":4 "));
    }

    #[test]
    fn every_shell_gets_a_script() {
        for shell in [Kind::Bash, Kind::Zsh, Kind::Fish] {
            assert!(run(&Args { shell }).unwrap().text.contains("kubectl-sg"));
        }
    }
}
