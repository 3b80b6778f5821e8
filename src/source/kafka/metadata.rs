//! What a commit says beside its offset, as the text that Kafka keeps with it:
//!
//! ```text
//! LEARNER CHECKPOINT [LEARNER:END ...]
//! ```
//!
//! who commits, the checkpoint that holds the offset, and where the work of each learner that had the partition
//! before ended, the last one first.

use crate::source::Commit;
use crate::source::offsets::{Ended, Tenure};
use std::fmt::Write;

/// The text of `commit` for a partition that those of `before` had.
pub(super) fn text(commit: &Commit, before: &[Ended]) -> String {
    let mut text = format!("{} {}", commit.learner_id, commit.checkpoint_id);
    for Ended { learner_id, at } in before {
        write!(text, " {learner_id}:{at}").expect("a String takes all");
    }
    text
}

/// What `text` says, if a learner wrote it.
pub(super) fn tenure(text: &str) -> Option<Tenure> {
    let mut words = text.split(' ');
    let (learner_id, _checkpoint_id) = (words.next()?, words.next()?);
    let ended = |word: &str| {
        let (learner_id, at) = word.rsplit_once(':')?;
        Some(Ended { learner_id: learner_id.to_owned(), at: at.parse().ok()? })
    };
    Some(Tenure { learner_id: learner_id.to_owned(), before: words.filter_map(ended).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commit_metadata_names_learner_checkpoint_and_those_before() {
        let commit = Commit {
            offsets: Default::default(),
            learner_id: "line-7".into(),
            checkpoint_id: "000000000042-abc".into(),
            sequence: 3,
        };
        let ended = |id: &str, at| Ended { learner_id: id.to_owned(), at };
        for before in [vec![], vec![ended("line-8", 40), ended("line:9", 12)]] {
            let text = text(&commit, &before);
            let learner_id = "line-7".to_owned();
            assert_eq!(tenure(&text), Some(Tenure { learner_id, before }));
            assert!(text.contains("000000000042-abc"), "{text}");
        }
        for others in ["", "something-else"] {
            assert_eq!(tenure(others), None, "{others:?}");
        }
    }
}
