//! Imports between the files of a crate, read from their source, and the circles among them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

use crate::walk;

/// Path of a module in its crate, without `crate`; empty for `lib.rs` and `main.rs`.
type Module = Vec<String>;

/// One name of a `use` declaration.
struct Import {
    path: Vec<String>,
    /// `None` for `*`.
    name: Option<String>,
    /// Whether other modules may see the name: then it can be a re-export that the file does not use itself.
    public: bool,
}

/// References of a file outside of its tests.
#[derive(Default)]
struct Source {
    file: String,
    imports: Vec<Import>,
    /// Paths of two or more segments in code.
    paths: Vec<Vec<String>>,
    /// All identifiers in code.
    words: BTreeSet<String>,
    /// Child modules that only tests have.
    test_modules: Vec<String>,
}

/// Which file of a crate imports from which.
pub struct ImportGraph {
    edges: BTreeMap<String, BTreeSet<String>>,
}

impl ImportGraph {
    /// Reads all files under `src`.
    ///
    /// Modules and imports under `#[cfg(test)]` are left out, and so are those of a file from the `mod.rs` that encloses it: a child
    /// module sees the private names of its parents, as an inner scope does. `lib.rs` encloses everything and is no such scope. A
    /// re-export counts as an import of the file where it is declared only if that file uses the name.
    pub fn read(src: &Path) -> Self {
        let mut sources = BTreeMap::new();
        for path in walk(src).iter().filter(|path| path.extension().is_some_and(|ending| ending == "rs")) {
            let file = path.strip_prefix(src).expect("walk stays inside").display().to_string();
            let text = std::fs::read_to_string(path).expect("a source file can be read");
            let tokens: TokenStream = text.parse().expect("a source file is Rust");
            sources.insert(module_of(&file), Source::read(file, tokens));
        }
        remove_test_modules(&mut sources);
        let edges = sources.iter().map(|(module, source)| {
            let encloses = |target: &Module| !target.is_empty() && module.starts_with(target);
            let targets = source.references().filter_map(|path| resolve(&sources, module, path, 0));
            let targets = targets.filter(|target| !encloses(target));
            let files = targets.filter_map(|target| sources.get(&target)).map(|target| target.file.clone());
            (source.file.clone(), files.filter(|file| *file != source.file).collect())
        });
        Self { edges: edges.collect() }
    }

    /// Number of files.
    pub fn len(&self) -> usize {
        self.edges.len()
    }

    /// Whether there are no files.
    pub fn is_empty(&self) -> bool {
        self.edges.is_empty()
    }

    /// Strongly connected components of more than one file.
    pub fn circles(&self) -> BTreeSet<BTreeSet<String>> {
        let reached: BTreeMap<&String, BTreeSet<&String>> =
            self.edges.keys().map(|file| (file, self.reachable(file))).collect();
        let component = |file: &String| {
            let both_ways = reached[file].iter().filter(|other| reached[**other].contains(file));
            both_ways.map(|other| (*other).clone()).collect()
        };
        self.edges.keys().filter(|file| reached[file].contains(file)).map(component).collect()
    }

    /// The imports within a circle, as `a.rs -> b.rs`.
    pub fn edges_within(&self, circle: &BTreeSet<String>) -> Vec<String> {
        circle
            .iter()
            .flat_map(|from| self.edges[from].intersection(circle).map(move |to| format!("{from} -> {to}")))
            .collect()
    }

    /// All files that a file depends on, itself only through others.
    fn reachable(&self, file: &String) -> BTreeSet<&String> {
        let mut reached = BTreeSet::new();
        let mut waiting: Vec<&String> = self.edges[file].iter().collect();
        while let Some(next) = waiting.pop() {
            if reached.insert(next) {
                waiting.extend(&self.edges[next]);
            }
        }
        reached
    }
}

fn module_of(file: &str) -> Module {
    let path = file.trim_end_matches(".rs").trim_end_matches("/mod");
    match path {
        "lib" | "main" => Module::new(),
        path => path.split('/').map(str::to_owned).collect(),
    }
}

fn child(module: &[String], name: &str) -> Module {
    let mut child = module.to_vec();
    child.push(name.to_owned());
    child
}

fn remove_test_modules(sources: &mut BTreeMap<Module, Source>) {
    let mut only_tests = Vec::new();
    for (module, source) in &*sources {
        only_tests.extend(source.test_modules.iter().map(|name| child(module, name)));
    }
    sources.retain(|module, _| !only_tests.iter().any(|test| module.starts_with(test)));
}

/// The module that defines what `path`, written in `module`, leads to; `None` if that is outside of the crate. Re-exports are
/// followed to the definition.
fn resolve(
    sources: &BTreeMap<Module, Source>,
    module: &[String],
    path: &[String],
    depth: usize,
) -> Option<Module> {
    // A module inside of a file imports what the file itself defines.
    if depth == 32 {
        return Some(module.to_vec());
    }
    let (mut at, names) = start(module, path);
    let relative = names.len() == path.len();
    for (index, name) in names.iter().enumerate() {
        let below = child(&at, name);
        if sources.contains_key(&below) {
            at = below;
            continue;
        }
        let bound = sources.get(&at)?.imports.iter().find(|import| import.name.as_ref() == Some(name));
        return match bound {
            Some(import) if at == module && import.path == path => None, // this declaration: of another crate
            Some(import) => {
                let whole = [&import.path, &names[index + 1..]].concat();
                resolve(sources, &at, &whole, depth + 1)
            }
            None if relative && index == 0 => None,
            None => Some(at),
        };
    }
    Some(at)
}

/// The module that a path starts from, and its names without `crate`, `self` and `super`.
fn start<'a>(module: &[String], path: &'a [String]) -> (Module, &'a [String]) {
    let mut at = module.to_vec();
    for (index, name) in path.iter().enumerate() {
        match name.as_str() {
            "crate" => at.clear(),
            "super" => drop(at.pop()),
            "self" => {}
            _ => return (at, &path[index..]),
        }
    }
    (at, &[])
}

impl Source {
    fn read(file: String, tokens: TokenStream) -> Self {
        let mut source = Self { file, ..Self::default() };
        source.scan(tokens);
        source
    }

    /// Paths that the file itself depends on.
    fn references(&self) -> impl Iterator<Item = &[String]> {
        let used = |import: &&Import| {
            !import.public || import.name.as_ref().is_none_or(|name| self.words.contains(name))
        };
        let imported = self.imports.iter().filter(used).map(|import| import.path.as_slice());
        imported.chain(self.paths.iter().map(Vec::as_slice))
    }

    fn scan(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        let mut public = false;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Punct(mark) if mark.as_char() == '#' => at = self.skip_attribute(&tokens, at),
                TokenTree::Ident(word) if word == "pub" => {
                    public = true;
                    at += 1 + usize::from(is_group(tokens.get(at + 1), Delimiter::Parenthesis));
                    continue;
                }
                // `use<…>` in a type captures lifetimes and imports nothing.
                TokenTree::Ident(word)
                    if word == "use" && !tokens.get(at + 1).is_some_and(|next| is_mark(next, '<')) =>
                {
                    let end =
                        at + tokens[at..].iter().position(|token| is_mark(token, ';')).expect("use ends");
                    self.import(&tokens[at + 1..end], &[], public);
                    at = end + 1;
                }
                TokenTree::Ident(_) => at = self.path(&tokens, at),
                TokenTree::Group(group) => {
                    self.scan(group.stream());
                    at += 1;
                }
                _ => at += 1,
            }
            public = false;
        }
    }

    /// The position after an attribute, and after its item if that is compiled for tests only.
    fn skip_attribute(&mut self, tokens: &[TokenTree], at: usize) -> usize {
        let bracket = at + 1 + usize::from(tokens.get(at + 1).is_some_and(|token| is_mark(token, '!')));
        let Some(TokenTree::Group(attribute)) = tokens.get(bracket) else { return at + 1 };
        let item = bracket + 1;
        if !is_for_tests(attribute) {
            return item;
        }
        let end = item + item_length(&tokens[item..]);
        if let [.., TokenTree::Ident(keyword), TokenTree::Ident(name)] = &tokens[item..end]
            && keyword == "mod"
        {
            self.test_modules.push(name.to_string());
        }
        end + 1
    }

    /// Flattens a `use` tree.
    fn import(&mut self, tree: &[TokenTree], prefix: &[String], public: bool) {
        let mut path = prefix.to_vec();
        let mut tokens = tree.iter();
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Ident(word) if word == "as" => {
                    let name = tokens.next().map(ToString::to_string);
                    return self.imports.push(Import { path, name, public });
                }
                TokenTree::Ident(word) if word == "self" && !path.is_empty() => {}
                TokenTree::Ident(word) => path.push(word.to_string()),
                TokenTree::Group(group) => {
                    let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                    for tree in inner.split(|token| is_mark(token, ',')).filter(|tree| !tree.is_empty()) {
                        self.import(tree, &path, public);
                    }
                    return;
                }
                token if is_mark(token, '*') => {
                    return self.imports.push(Import { path, name: None, public });
                }
                _ => {}
            }
        }
        let name = path.last().cloned();
        self.imports.push(Import { path, name, public });
    }

    /// Takes the path that begins at `at`, and returns the position after it.
    fn path(&mut self, tokens: &[TokenTree], mut at: usize) -> usize {
        let mut path = Vec::new();
        while let Some(TokenTree::Ident(word)) = tokens.get(at) {
            path.push(word.to_string());
            at += 1;
            match tokens.get(at..at + 2) {
                Some([first, second]) if is_mark(first, ':') && is_mark(second, ':') => at += 2,
                _ => break,
            }
        }
        self.words.extend(path.iter().cloned());
        if path.len() > 1 {
            self.paths.push(path);
        }
        at
    }
}

/// Tokens of an item before the semicolon or block that ends it.
fn item_length(tokens: &[TokenTree]) -> usize {
    let is_use = |token: &TokenTree| matches!(token, TokenTree::Ident(word) if word == "use");
    let mut import = false;
    let end = tokens.iter().position(|token| {
        import |= is_use(token);
        is_mark(token, ';') || (!import && is_group(Some(token), Delimiter::Brace))
    });
    end.unwrap_or(tokens.len())
}

fn is_mark(token: &TokenTree, mark: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == mark)
}

fn is_group(token: Option<&TokenTree>, delimiter: Delimiter) -> bool {
    matches!(token, Some(TokenTree::Group(group)) if group.delimiter() == delimiter)
}

/// Whether an attribute is `cfg(test)`, alone or in `all`.
fn is_for_tests(attribute: &Group) -> bool {
    let text: String =
        attribute.stream().to_string().chars().filter(|letter| !letter.is_whitespace()).collect();
    text == "cfg(test)" || text.starts_with("cfg(all(test")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(files: &[(&str, &str)]) -> ImportGraph {
        let folder = tempfile::tempdir().expect("a temporary directory");
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a file has a parent")).expect("directories");
            std::fs::write(path, text).expect("a file");
        }
        ImportGraph::read(folder.path())
    }

    fn circle(files: &[&str]) -> BTreeSet<BTreeSet<String>> {
        BTreeSet::from([files.iter().map(|file| (*file).to_owned()).collect()])
    }

    #[test]
    fn a_circle_through_imports_paths_and_re_exports_is_found() {
        let found = graph(&[
            ("lib.rs", "mod a; mod b; mod c; pub use c::inner::{Deep as Renamed};"),
            ("a.rs", "use crate::{b::{self, B}, Renamed}; pub struct A;"),
            ("b.rs", "pub struct B; fn f() { let x = vec![super::c::go()]; }"),
            ("c/mod.rs", "pub(crate) mod inner; pub(crate) fn go() {}"),
            ("c/inner.rs", "use crate::a::A; pub struct Deep(A);"),
        ]);

        assert_eq!(found.circles(), circle(&["a.rs", "c/inner.rs"]));
        assert_eq!(found.edges["b.rs"], BTreeSet::from(["c/mod.rs".to_owned()]));
        let all = BTreeSet::from(["a.rs", "c/inner.rs"].map(str::to_owned));
        assert_eq!(found.edges_within(&all), ["a.rs -> c/inner.rs", "c/inner.rs -> a.rs"]);
    }

    #[test]
    fn a_re_export_is_a_dependency_where_its_file_uses_the_name() {
        let user = ("user.rs", "use crate::door::Shared; pub struct Item(Shared);");
        let passed_on = "pub use crate::user::Item; pub struct Shared;";
        let used = "pub use crate::user::Item; pub struct Shared; fn f(item: Item) {}";

        assert!(graph(&[("lib.rs", ""), ("door.rs", passed_on), user]).circles().is_empty());
        assert_eq!(
            graph(&[("lib.rs", ""), ("door.rs", used), user]).circles(),
            circle(&["door.rs", "user.rs"])
        );
    }

    #[test]
    fn an_enclosing_module_is_a_scope_and_the_root_is_not() {
        let nested = graph(&[
            ("lib.rs", "mod a;"),
            ("a/mod.rs", "mod child; use child::Child; pub struct Shared;"),
            ("a/child.rs", "use super::Shared; pub struct Child(Shared);"),
        ]);
        let rooted = graph(&[
            ("lib.rs", "mod child; use child::Child; pub struct Shared;"),
            ("child.rs", "use super::Shared; pub struct Child(Shared);"),
        ]);

        assert!(nested.circles().is_empty());
        assert_eq!(rooted.circles(), circle(&["child.rs", "lib.rs"]));
    }

    #[test]
    fn imports_of_tests_and_of_other_crates_do_not_count() {
        let found = graph(&[
            ("lib.rs", "mod a; mod b; #[cfg(test)] mod fixture;"),
            ("a.rs", "use std::b::B; use crate::b::B; #[cfg(test)] use crate::fixture::F; pub struct A;"),
            ("b.rs", "pub struct B; #[cfg(test)] mod tests { use crate::a::A; }"),
            ("fixture.rs", "use crate::a::A; use crate::b::B;"),
        ]);

        assert!(found.circles().is_empty());
        assert_eq!(found.len(), 3);
    }
}
