//! Rust source as the checks see it: lines with and without their strings and comments, code with and without its tests.

/// A line without the content of its string literals, so that text about code is not taken for code.
///
/// Knows strings and characters that begin and end on the line, which is all that the checks need.
pub(crate) fn without_strings(line: &str) -> String {
    let mut kept = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find(['"', '\'']) {
        let (before, from) = rest.split_at(at);
        kept.push_str(before);
        let literal = if from.starts_with('"') {
            string_end(from)
        } else {
            character_end(from)
        };
        match literal {
            Some(end) => {
                kept.push_str("\"\"");
                rest = &from[end..];
            }
            // A lifetime, or a string that goes on in the next line: keep it.
            None => {
                kept.push_str(&from[..1]);
                rest = &from[1..];
            }
        }
    }
    kept.push_str(rest);
    kept
}

/// Where the string literal ends that `from` begins with.
fn string_end(from: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, character) in from.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// Where the character literal ends that `from` begins with; a lifetime is none.
fn character_end(from: &str) -> Option<usize> {
    let mut characters = from.char_indices().skip(1);
    let (_, first) = characters.next()?;
    if first == '\\' {
        characters.next()?;
    }
    characters
        .next()
        .filter(|(_, last)| *last == '\'')
        .map(|(at, _)| at + 1)
}

/// The code of a line: no strings, no line comment.
pub(crate) fn code(line: &str) -> String {
    let mut code = without_strings(line);
    if let Some(comment) = code.find("//") {
        code.truncate(comment);
    }
    code
}

/// True if `word` stands in `text` with no letter, digit or underscore beside it.
pub(crate) fn has_word(text: &str, word: &str) -> bool {
    let joins = |character: char| character.is_alphanumeric() || character == '_';
    text.match_indices(word).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + word.len()..]);
        !before.ends_with(joins) && !after.starts_with(joins)
    })
}

/// How many lines a file has before its test module.
pub(crate) fn lines_without_tests(text: &str) -> usize {
    let lines: Vec<_> = text.lines().collect();
    let test_module = lines
        .windows(2)
        .position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod "));
    match test_module {
        Some(at) if lines[at + 1].ends_with('{') => at,
        _ => lines.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_and_comments_are_not_code() {
        assert_eq!(
            without_strings(r#"say("a \" b", 'c', '\'', x)"#),
            r#"say("", "", "", x)"#
        );
        assert_eq!(
            without_strings("fn f<'a>(x: &'a str)"),
            "fn f<'a>(x: &'a str)"
        );
        assert_eq!(code(r#"open("https://x") // why"#), r#"open("") "#);
    }

    #[test]
    fn words_stand_alone() {
        assert!(has_word("unsafe { }", "unsafe"));
        assert!(!has_word("unsafe_code", "unsafe"));
        assert!(!has_word("not_unsafe", "unsafe"));
    }

    #[test]
    fn tests_do_not_count() {
        assert_eq!(
            lines_without_tests("a\nb\n#[cfg(test)]\nmod tests {\n    x\n}\n"),
            2
        );
        assert_eq!(lines_without_tests("a\n#[cfg(test)]\nmod tests;\nb\n"), 4);
    }
}
