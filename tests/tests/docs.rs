//! The tables of `docs/` name the test behind each cell; here those names are held to the tree.

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::{Path, PathBuf};

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    /// Every `fn` that stands below a `#[test]`, and those of `proptest!`, which look the same.
    fn tests_in(folder: &Path, names: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() && path.file_name().is_none_or(|name| name != "target") {
                tests_in(&path, names);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let mut lines = text.lines().map(str::trim);
                while let Some(line) = lines.next() {
                    if line != "#[test]" {
                        continue;
                    }
                    let declared = lines.by_ref().find_map(|line| line.strip_prefix("fn "));
                    names.extend(
                        declared.and_then(|rest| rest.split('(').next()).map(str::to_owned),
                    );
                }
            }
        }
    }

    /// Words in back quotes that look like a test's name: three underscores or more.
    fn names_in(text: &str) -> BTreeSet<&str> {
        text.split('`')
            .skip(1)
            .step_by(2)
            .filter(|word| word.matches('_').count() >= 3)
            .filter(|word| {
                word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            })
            .filter(|word| !word.starts_with("podtap_"))
            .collect()
    }

    #[test]
    fn each_test_that_a_table_names_exists() {
        let mut existing = BTreeSet::new();
        for folder in ["engine", "tests"] {
            tests_in(&root().join(folder), &mut existing);
        }
        let pages = fs::read_dir(root().join("docs")).unwrap().map(Result::unwrap);
        // Charts are beside them.
        let is_page = |page: &fs::DirEntry| page.path().extension().is_some_and(|it| it == "md");
        let pages: Vec<_> = pages.filter(is_page).collect();
        assert!(!pages.is_empty());
        for page in pages {
            let text = fs::read_to_string(page.path()).unwrap();
            let missing: Vec<_> =
                names_in(&text).into_iter().filter(|name| !existing.contains(*name)).collect();
            assert!(missing.is_empty(), "{}: no such test: {missing:?}", page.path().display());
        }
    }

    #[test]
    fn each_row_of_the_protocol_table_names_a_test() {
        let text = fs::read_to_string(root().join("docs/rpcap.md")).unwrap();
        let rows: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("| ") && line.matches('|').count() >= 6)
            .filter(|line| !line.starts_with("| message"))
            .collect();
        assert!(rows.len() > 30, "the table has {} rows", rows.len());
        for row in rows {
            assert!(!names_in(row).is_empty(), "no test: {row}");
        }
    }
}
