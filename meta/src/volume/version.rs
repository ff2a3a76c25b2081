//! Version numbers of clients, compared as JuiceFS compares them: not quite semantic versioning.

/// `major.minor.patch[-pre][+build]`; build is ignored, missing parts are 0.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Version {
    numbers: [u64; 3],
    pre_release: String,
}

impl Version {
    /// `None` if it is not a version.
    pub fn parse(text: &str) -> Option<Version> {
        let text = text.split_once('+').map_or(text, |(version, _)| version);
        let (numbers, pre_release) = text.split_once('-').unwrap_or((text, ""));
        let mut parts = [0; 3];
        for (index, part) in numbers.split('.').enumerate() {
            *parts.get_mut(index)? = part.parse().ok()?;
        }
        Some(Version {
            numbers: parts,
            pre_release: pre_release.into(),
        })
    }
}

impl Ord for Version {
    /// A release comes after all of its pre-releases; those are ordered as text.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let key = |version: &Version| (version.numbers, version.pre_release.is_empty());
        key(self)
            .cmp(&key(other))
            .then_with(|| self.pre_release.cmp(&other.pre_release))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order() {
        let ascending = [
            "0.9",
            "1.1.0-A",
            "1.1.0-B",
            "1.1.0",
            "1.2.0-A",
            "1.4.1-rc1",
            "1.4.1",
            "1.4.2-A",
            "1.10",
            "2",
        ];
        for pair in ascending.windows(2) {
            let [low, high] = [0, 1].map(|at| Version::parse(pair[at]).unwrap());
            assert!(low < high, "{pair:?}");
        }
        assert_eq!(Version::parse("1.4.1+2026.abc"), Version::parse("1.4.1"));
        for bad in ["", "x", "1.2.3.4", "1..2", "v1"] {
            assert_eq!(Version::parse(bad), None, "{bad}");
        }
    }
}
