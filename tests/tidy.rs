//! The tree holds to its own rules: arrows between packages and modules, folders on the map, module docs, lengths,
//! stand-ins, licences. What is allowed stands in ARCHITECTURE.md and deny.toml, not here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// The longest source file, in lines.
const LINES_MAX: usize = 800;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All files of the project, as paths from its root. Not what is built, installed or kept by version control.
fn files() -> Vec<PathBuf> {
    const FOREIGN: [&str; 6] = [".git", "target", "node_modules", "hearth-data", "__pycache__", ".venv"];
    let (mut found, mut folders) = (Vec::new(), vec![root().to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_symlink() || FOREIGN.contains(&name) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(root()).unwrap().to_owned());
            }
        }
    }
    found.sort();
    assert!(found.contains(&PathBuf::from("Cargo.toml")));
    found
}

fn is_rust(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
}

/// What only tests and benches are made of.
fn is_test(path: &Path) -> bool {
    let in_folder = ["tests", "benches", "contract"].iter().any(|folder| {
        path.parent().is_some_and(|parent| parent.components().any(|part| part.as_os_str() == *folder))
    });
    in_folder || ["tests.rs", "testing.rs"].iter().any(|name| path.ends_with(name))
}

fn assert_none(problems: &[String], rule: &str) {
    assert!(problems.is_empty(), "{rule}:\n  {}", problems.join("\n  "));
}

/// The rows of the table in ARCHITECTURE.md whose first column has this title.
fn table(title: &str) -> BTreeMap<String, Vec<BTreeSet<String>>> {
    let text = read("ARCHITECTURE.md");
    let rows = text.lines().skip_while(|line| {
        line.strip_prefix('|').and_then(|line| line.split('|').next()).map(str::trim) != Some(title)
    });
    let rows = rows.skip(2).take_while(|line| line.starts_with('|')).map(|line| {
        let mut cells = line.trim_matches('|').split('|').map(str::trim);
        let name = cells.next().unwrap().to_owned();
        (name, cells.map(|cell| cell.split_whitespace().map(str::to_owned).collect()).collect())
    });
    let rows: BTreeMap<_, _> = rows.collect();
    assert!(!rows.is_empty(), "ARCHITECTURE.md has no table of each {title}");
    rows
}

fn cargo_metadata(arguments: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(root()).args(["metadata", "--format-version=1", "--offline"]).args(arguments);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a Vec<Value> {
    value[key].as_array().unwrap()
}

#[test]
fn packages_use_only_what_the_map_allows() {
    let map = table("package");
    let metadata = cargo_metadata(&["--no-deps"]);
    let packages = list(&metadata, "packages");
    let ours: BTreeSet<&str> = packages.iter().map(|package| package["name"].as_str().unwrap()).collect();
    assert_eq!(ours, map.keys().map(String::as_str).collect(), "packages and the map differ");
    let mut problems = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let [allowed, banned] = &map[name][..] else { panic!("the row of {name} has not two lists") };
        for dependency in list(package, "dependencies") {
            let used = dependency["name"].as_str().unwrap();
            let for_tests = dependency["kind"].as_str() == Some("dev");
            if ours.contains(used) && !allowed.contains(used) {
                problems.push(format!("{name} → {used} is no arrow of the map"));
            }
            if banned.contains(used) && !for_tests {
                problems.push(format!("{name} may not use {used}"));
            }
        }
    }
    assert_none(&problems, "ARCHITECTURE.md, packages");
}

#[test]
fn the_image_is_built_of_every_package() {
    let ignored = read(".dockerignore");
    let sent: BTreeSet<&str> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let metadata = cargo_metadata(&["--no-deps"]);
    for package in list(&metadata, "packages") {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap());
        let folder = manifest.parent().unwrap().strip_prefix(root()).unwrap();
        let folder = if folder.as_os_str().is_empty() { Path::new("src") } else { folder };
        assert!(sent.contains(folder.to_str().unwrap()), ".dockerignore keeps {} away", folder.display());
    }
}

#[test]
fn modules_use_only_what_the_map_allows() {
    let map = table("module");
    let mut problems = BTreeSet::new();
    for path in files().into_iter().filter(|path| path.starts_with("src") && is_rust(path)) {
        let first = path.iter().nth(1).unwrap().to_str().unwrap();
        let module = first.trim_end_matches(".rs");
        if module == "main" || module == "lib" {
            continue;
        }
        let Some(row) = map.get(module) else {
            problems.insert(format!("src/{first} is not in the table"));
            continue;
        };
        for used in crate_paths(&read(&path)) {
            if used != module && !row[0].contains(&used) {
                problems.insert(format!("{module} → {used} ({})", path.display()));
            }
        }
    }
    let problems: Vec<String> = problems.into_iter().collect();
    assert_none(&problems, "ARCHITECTURE.md, modules of src");
}

/// The modules that `crate::…` names in a source text.
fn crate_paths(source: &str) -> BTreeSet<String> {
    let name_of = |text: &str| {
        let name: String =
            text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        Some(name).filter(|name| name.starts_with(|c: char| c.is_lowercase()))
    };
    let mut found = BTreeSet::new();
    for rest in source.split("crate::").skip(1) {
        let Some(group) = rest.strip_prefix('{') else {
            found.extend(name_of(rest));
            continue;
        };
        let mut depth = 1;
        found.extend(name_of(group));
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => found.extend(name_of(&group[at + 1..])),
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    found
}

#[test]
fn the_scanner_of_modules_sees_groups() {
    let source = "use crate::{\n    app::App,\n    http::{Route, error},\n    Thing,\n};\nfn f() { crate::sync::run(crate::Name) }";
    assert_eq!(crate_paths(source), ["app", "http", "sync"].map(str::to_owned).into());
}

/// The tests of a package are named as a whole, with all that lies below.
fn whole_tests(folder: &Path) -> PathBuf {
    let parts: Vec<_> = folder.iter().collect();
    let end = if parts.get(1).is_some_and(|part| *part == "tests") { 2 } else { parts.len() };
    parts[..end].iter().collect()
}

#[test]
fn architecture_names_every_folder() {
    let map = read("ARCHITECTURE.md");
    let folders: BTreeSet<PathBuf> = files()
        .iter()
        .filter_map(|path| path.parent())
        .filter(|folder| !folder.as_os_str().is_empty())
        .map(whole_tests)
        .collect();
    // Of a package only what is in it: `store/` holds a Cargo.toml and folders.
    let packages: BTreeSet<PathBuf> = files()
        .iter()
        .filter(|path| path.ends_with("Cargo.toml"))
        .filter_map(|path| path.parent().map(Path::to_owned))
        .collect();
    let missing: Vec<String> = folders
        .difference(&packages)
        .map(|folder| format!("`{}/`", folder.display()))
        .filter(|name| !map.contains(name.as_str()))
        .collect();
    assert_none(&missing, "folders that ARCHITECTURE.md does not name");
    let gone: Vec<String> = map
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| name.ends_with('/') || name.ends_with(".rs"))
        .filter(|name| name.contains('/') && !root().join(name).exists())
        .map(str::to_owned)
        .collect();
    assert_none(&gone, "what ARCHITECTURE.md names and is not there");
}

#[test]
fn source_files_are_one_idea_with_its_purpose_on_top() {
    let mut problems = Vec::new();
    for path in files().into_iter().filter(|path| is_rust(path)) {
        let text = read(&path);
        let lines = text.lines().count();
        if lines > LINES_MAX {
            problems.push(format!("{}: {lines} lines, more than {LINES_MAX}", path.display()));
        }
        if !text.lines().take(3).any(|line| line.starts_with("//!")) {
            problems.push(format!("{}: no module doc", path.display()));
        }
    }
    assert_none(&problems, "source files");
}

#[test]
fn nothing_is_left_half_done() {
    // Put together here, so that this file does not find itself.
    let stand_ins = ["todo!", "unimplemented!", "dbg!"].map(|name| format!("{name}("));
    let switched_off = ["#[", "ignore"].concat();
    let mut problems = Vec::new();
    for path in files().into_iter().filter(|path| is_rust(path)) {
        let text = read(&path);
        let mut in_tests = is_test(&path);
        for (number, line) in text.lines().enumerate() {
            in_tests |= line.contains("#[cfg(test)]");
            let mut report = |what: &str| problems.push(format!("{}:{}: {what}", path.display(), number + 1));
            if stand_ins.iter().any(|name| line.contains(name.as_str())) {
                report("a stand-in");
            }
            if line.contains(&switched_off) {
                report("a test that is switched off");
            }
            if !in_tests && line.contains(".unwrap()") {
                report("unwrap outside tests");
            }
        }
    }
    assert_none(&problems, "half done");
}

#[test]
fn nothing_names_the_machine_it_was_written_on() {
    let folders = ["work", "farm", "home", "Users"].map(|name| format!("/{name}/"));
    let mut problems = Vec::new();
    for path in files().iter().filter(|path| !path.ends_with("LICENSE")) {
        let Ok(text) = fs::read_to_string(root().join(path)) else { continue };
        for (number, line) in text.lines().enumerate() {
            let named = folders.iter().any(|folder| {
                line.match_indices(folder.as_str()).any(|(at, _)| {
                    !line[..at]
                        .ends_with(|before: char| before.is_alphanumeric() || "._-/})".contains(before))
                })
            });
            if named {
                problems.push(format!("{}:{}", path.display(), number + 1));
            }
        }
    }
    assert_none(&problems, "paths of a machine");
}

#[test]
fn decisions_are_numbered_and_readme_begins_with_two_commands() {
    let decisions: Vec<_> = files().into_iter().filter(|path| path.starts_with("docs/adr")).collect();
    for (index, path) in decisions.iter().enumerate() {
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with(&format!("{:04}-", index + 1)), "{name} is out of order");
        assert!(read(path).starts_with(&format!("# {}. ", index + 1)), "{name} has another title");
    }
    let readme = read("README.md");
    let block = readme.split("```").nth(1).unwrap();
    let commands: Vec<&str> =
        block.lines().skip(1).map(|line| line.split(" #").next().unwrap().trim()).collect();
    assert_eq!(commands, ["cargo run --release", "cargo test --workspace"]);
    assert!(readme.find("```").unwrap() < 20, "something stands before README's commands");
    assert!(read("CHANGELOG.md").contains("Before you upgrade"));
}

#[test]
fn dependencies_have_licences_and_sources_that_are_allowed() {
    let rules: toml::Table = toml::from_str(&read("deny.toml")).unwrap();
    let allowed: BTreeSet<&str> =
        rules["licenses"]["allow"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let banned: BTreeSet<&str> = rules["bans"]["deny"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["crate"].as_str().unwrap())
        .collect();
    let metadata = cargo_metadata(&["--filter-platform", &host()]);
    let packages = list(&metadata, "packages");
    assert!(packages.len() > 50, "these are not all packages");
    let mut problems = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let licence = package["license"].as_str().unwrap_or("(none)");
        if !Licence::new(licence).allowed(&allowed) {
            problems.push(format!("{name}: licence {licence}"));
        }
        if banned.contains(name) {
            problems.push(format!("{name} is banned"));
        }
        if package["source"].as_str().is_some_and(|source| !source.contains("crates.io-index")) {
            problems.push(format!("{name} comes from {}", package["source"]));
        }
    }
    assert_none(&problems, "deny.toml");
}

fn host() -> String {
    let output = Command::new("rustc").arg("-vV").output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    output.lines().find_map(|line| line.strip_prefix("host: ")).unwrap().to_owned()
}

/// An SPDX expression, read word by word.
struct Licence(std::iter::Peekable<std::vec::IntoIter<String>>);

impl Licence {
    fn new(expression: &str) -> Self {
        // The slash is the old way to write OR.
        let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
        Self(spaced.split_whitespace().map(str::to_owned).collect::<Vec<_>>().into_iter().peekable())
    }

    fn allowed(mut self, allowed: &BTreeSet<&str>) -> bool {
        self.any(allowed)
    }

    fn any(&mut self, allowed: &BTreeSet<&str>) -> bool {
        let mut good = self.all(allowed);
        while self.0.next_if(|word| word == "OR").is_some() {
            good |= self.all(allowed);
        }
        good
    }

    fn all(&mut self, allowed: &BTreeSet<&str>) -> bool {
        let mut good = self.one(allowed);
        while self.0.next_if(|word| word == "AND").is_some() {
            good &= self.one(allowed);
        }
        good
    }

    fn one(&mut self, allowed: &BTreeSet<&str>) -> bool {
        let Some(mut name) = self.0.next() else { return false };
        if name == "(" {
            let good = self.any(allowed);
            return self.0.next().as_deref() == Some(")") && good;
        }
        if self.0.next_if(|word| word == "WITH").is_some() {
            name = format!("{name} WITH {}", self.0.next().unwrap_or_default());
        }
        allowed.contains(name.as_str())
    }
}

#[test]
fn licence_expressions_are_understood() {
    let allowed: BTreeSet<&str> = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].into();
    for (expression, good) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT OR GPL-3.0", true),
        ("GPL-3.0/MIT", true),
        ("MIT AND GPL-3.0", false),
        ("(GPL-3.0 OR MIT) AND ISC", true),
        ("Apache-2.0 WITH LLVM-exception OR GPL-3.0", true),
        ("Apache-2.0", false),
        ("", false),
    ] {
        assert_eq!(Licence::new(expression).allowed(&allowed), good, "{expression}");
    }
}
