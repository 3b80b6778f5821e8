//! Collections of image files.
