//! A URL that may hold a password, and never shows it.

use std::fmt;

const DOTS: &str = "••••";

/// A URL of a store. Printing it, for people or for debugging, shows dots in place of the password.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(String);

impl SecretUrl {
    /// Takes it as it is.
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    /// The whole URL, for the one who connects.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((scheme, rest)) = self.0.split_once("://") else {
            // Not a URL: it may be a password that was put into the wrong place.
            return f.write_str(DOTS);
        };
        write!(f, "{scheme}://")?;
        // The last '@' of all, since a password with an unescaped '/' or '?' is a mistake that still must not be shown.
        let rest = match rest.rsplit_once('@') {
            Some((who, rest)) => {
                let user = who.split(':').next().unwrap_or_default();
                write!(f, "{user}")?;
                if who.contains(':') {
                    write!(f, ":{DOTS}")?;
                }
                f.write_str("@")?;
                rest
            }
            None => rest,
        };
        match rest.split_once('?') {
            // Drivers take passwords from the query too; none of it is worth the risk.
            Some((place, _)) => write!(f, "{place}?{DOTS}"),
            None => f.write_str(rest),
        }
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_printed() {
        for (url, shown) in [
            ("postgres://host/db", "postgres://host/db"),
            ("postgres://me@host/db", "postgres://me@host/db"),
            (
                "postgres://me:hunter2@host/db",
                "postgres://me:••••@host/db",
            ),
            (
                "postgres://me:hun/ter2@host/db",
                "postgres://me:••••@host/db",
            ),
            ("redis://:hunter2@host:6379", "redis://:••••@host:6379"),
            (
                "postgres://host/db?password=hunter2",
                "postgres://host/db?••••",
            ),
            ("hunter2", "••••"),
        ] {
            assert_eq!(SecretUrl::new(url).to_string(), shown);
            assert_eq!(format!("{:?}", SecretUrl::new(url)), shown);
        }
    }
}
