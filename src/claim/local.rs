//! Objects that are files of this machine.

use super::unfetched::{Forbidden, Unfetched};
use object_store::path::Path;
use std::io::{self, ErrorKind};
use std::path::PathBuf;

/// The file that `path` names, with every symbolic link followed: it must lie below `folder`, whose own
/// links have been followed. Someone who can change the folder's links meanwhile is not kept out.
///
/// # Errors
/// No file there, one outside of the folder, or one that cannot be looked at.
pub(super) async fn resolve(uri: &str, folder: PathBuf, path: &Path) -> Result<Path, Unfetched> {
    // A path in an object store has no slash before it, and no dots in it.
    let asked = PathBuf::from("/").join(path.as_ref());
    let looked = tokio::task::spawn_blocking(move || look(asked, folder)).await;
    match looked {
        Ok(Ok(Found::File(file))) => {
            Path::from_absolute_path(file).map_err(|error| Unfetched::unreachable(uri, error))
        }
        Ok(Ok(Found::Outside)) => Err(Unfetched::not_allowed(uri, Forbidden::Link)),
        Ok(Ok(Found::NoFile)) => Err(Unfetched::not_found(uri, "it is no file")),
        Ok(Err(error)) => Err(match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidFilename => {
                Unfetched::not_found(uri, error)
            }
            _ => Unfetched::unreachable(uri, error),
        }),
        Err(error) => Err(Unfetched::unreachable(uri, error)),
    }
}

enum Found {
    File(PathBuf),
    /// A folder, or what opening might wait for, such as a pipe.
    NoFile,
    Outside,
}

fn look(asked: PathBuf, folder: PathBuf) -> io::Result<Found> {
    let real = asked.canonicalize()?;
    if !real.starts_with(&folder) {
        return Ok(Found::Outside);
    }
    Ok(if real.metadata()?.is_file() { Found::File(real) } else { Found::NoFile })
}
