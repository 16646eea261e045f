//! Processes: those started here, and what the kernel knows of others.

use std::{
    collections::BTreeMap,
    fs,
    process::{Child, Command},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// A started process that ends with its value.
pub struct Running(Child);

impl Running {
    pub fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// Ends it as Kubernetes does at first, and waits.
    pub fn end(mut self) {
        let _ = Command::new("sh").args(["-c", &format!("kill -TERM {}", self.0.id())]).status();
        let _ = self.0.wait();
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command to its end, which must be a good one.
pub async fn run(mut command: Command) {
    let done = tokio::task::spawn_blocking(move || {
        let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        assert!(status.success(), "{command:?}: {status}");
    });
    done.await.expect("a command that was waited for");
}

/// Whether a tool is there.
pub fn installed(tool: &str) -> bool {
    Command::new("sh").args(["-c", &format!("command -v {tool}")]).output().is_ok_and(|o| o.status.success())
}

/// The most memory that a process has had, in MiB.
pub fn peak_memory(id: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").trim().parse::<f64>().ok()? / 1024.0)
}

/// Looks at the operator's processes while it lives, whoever has started them: the most memory that any process of a subcommand has had.
pub struct MemoryWatch {
    peaks: Arc<Mutex<BTreeMap<String, f64>>>,
    over: Arc<AtomicBool>,
    watcher: Option<thread::JoinHandle<()>>,
}

impl MemoryWatch {
    pub fn start() -> Self {
        let peaks = Arc::new(Mutex::new(BTreeMap::new()));
        let over = Arc::new(AtomicBool::new(false));
        let (into, until) = (Arc::clone(&peaks), Arc::clone(&over));
        let watcher = thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                look(&mut into.lock().expect("nobody panics with it"));
                thread::sleep(Duration::from_millis(500));
            }
        });
        Self { peaks, over, watcher: Some(watcher) }
    }

    pub fn end(mut self) -> BTreeMap<String, f64> {
        self.over.store(true, Ordering::Relaxed);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
        self.peaks.lock().expect("nobody panics with it").clone()
    }
}

fn look(peaks: &mut BTreeMap<String, f64>) {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for id in processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        let Ok(command) = fs::read_to_string(format!("/proc/{id}/cmdline")) else { continue };
        let mut words = command.split('\0');
        let (Some(program), Some(part)) = (words.next(), words.next()) else { continue };
        if !program.ends_with("/mirror-operator") {
            continue;
        }
        if let Some(memory) = peak_memory(id) {
            let peak = peaks.entry(part.to_string()).or_insert(0.0);
            *peak = peak.max(memory);
        }
    }
}
