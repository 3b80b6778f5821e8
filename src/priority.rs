//! Which threads give way to which, where there is less processor than there is work.

use std::io;

/// Makes the calling thread, and those that it starts from now on, give way: 0 not at all, 19 to nearly
/// everything. Linux schedules threads by themselves; elsewhere this does nothing.
///
/// # Errors
/// The system's refusal.
pub fn give_way(niceness: u8) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    if niceness > 0 {
        // On Linux "this process" is the calling thread (setpriority(2), "C library/kernel
        // differences").
        rustix::process::setpriority_process(None, niceness.into())?;
    }
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::thread;

    fn niceness() -> i32 {
        rustix::process::getpriority_process(None).unwrap()
    }

    #[test]
    fn only_the_calling_thread_and_its_children_give_way() {
        let before = niceness();
        let (of_thread, of_child) = thread::spawn(move || {
            give_way(7).unwrap();
            (niceness(), thread::spawn(niceness).join().unwrap())
        })
        .join()
        .unwrap();
        assert_eq!((of_thread, of_child), (7.max(before), 7.max(before)));
        assert_eq!(niceness(), before);
    }
}
