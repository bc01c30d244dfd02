//! Origins of web pages, as an option has them.

/// Reads a list of origins: scheme, host and perhaps a port, between commas. `None`: something else is among them.
pub(super) fn origins(text: &str) -> Option<Vec<String>> {
    let listed = text.split(',').map(str::trim).filter(|one| !one.is_empty());
    listed
        .map(|one| {
            let uri: http::Uri = one.parse().ok()?;
            let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
            let authority = uri.authority()?.as_str();
            let is_bare = one.strip_suffix(authority)?.ends_with("://") && !authority.contains('@');
            (is_web && is_bare).then(|| one.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_scheme_a_host_and_a_port_and_nothing_else() {
        let two = origins("https://a.example, http://localhost:3000").unwrap();
        assert_eq!(two, ["https://a.example", "http://localhost:3000"]);
        assert_eq!(origins(""), Some(Vec::new()));
        for bad in [
            "*",
            "a.example",
            "ftp://a",
            "https://a/",
            "https://u@a",
            "null",
        ] {
            assert_eq!(origins(bad), None, "{bad}");
        }
    }
}
