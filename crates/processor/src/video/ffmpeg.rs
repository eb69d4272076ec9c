//! Video files (mp4, mov, webm, …), decoded by the `ffmpeg` that is installed.
//!
//! A video file is looked through twice: `ffprobe` lists its packets, which tells the number of frames and
//! their times without decoding, and `ffmpeg` decodes up to the last frame that is wanted and sends the
//! wanted ones through a pipe. Neither keeps what it has read, so memory does not grow with the video file.
//! Frame rate and length are torchcodec's, which transformers reads video files with: frames over the time
//! from the first to the end of the last. So are the colours and the way up: a video file is turned by quarters,
//! and one that its file says to mirror is not mirrored, although players do that.
//!
//! A video file may be hostile. The programs may read this one file and no network, formats that name other
//! files (playlists) are off, the size of an image is limited, and they are killed when the time is
//! over or anything is wrong.

use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::NamedTempFile;

use super::reader::{Clock, absolute};
use super::{VideoError, VideoLimits};
use crate::image::Rgb;

/// Containers of a single file.
const FORMATS: &str =
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,h264,hevc,ivf,m4v";

/// Longest complaint of a program that is passed on.
const LONGEST_COMPLAINT: u64 = 2000;

/// Longest line of a listing; those of packets have a hundred bytes.
const LONGEST_LINE: u64 = 1 << 16;

/// A video file.
pub(super) struct VideoFile {
    path: PathBuf,
    /// Keeps the file of a video file that came as bytes.
    _written: Option<NamedTempFile>,
    /// Frames found.
    pub(super) frames: usize,
    /// From the first frame to the end of the last.
    pub(super) seconds: f64,
    /// Filters that make a frame an image.
    filters: String,
}

impl VideoFile {
    pub(super) fn open(
        path: PathBuf,
        written: Option<NamedTempFile>,
        name: &str,
        limits: &VideoLimits,
        clock: Clock,
    ) -> Result<Self, VideoError> {
        let mut command = command("ffprobe");
        command.args(["-select_streams", "V:0", "-show_entries"]);
        let stream = "stream=width,height,color_space,avg_frame_rate,time_base:stream_side_data=rotation";
        command.arg(format!("packet=pts,dts,duration,flags:{stream}"));
        command.args(["-of", "compact=nokey=0", "-i"]).arg(input(&path));
        let (mut running, output) = Running::start("ffprobe", command, name, clock)?;
        let mut found = Packets::default();
        let mut output = BufReader::new(output);
        while let Some(line) = short_line(&mut output, name)? {
            found.take(&line);
            if found.count > limits.max_frames {
                return Err(VideoError::ManyFrames {
                    name: name.to_owned(),
                    found: found.count,
                    limit: limits.max_frames,
                });
            }
        }
        running.end()?;
        let (width, height) = found.size.ok_or_else(|| VideoError::NoFrames { name: name.to_owned() })?;
        limits.frame.check_size(width, height, name).map_err(|source| VideoError::File(source.into()))?;
        if found.count == 0 {
            return Err(VideoError::NoFrames { name: name.to_owned() });
        }
        let seconds = found.seconds().ok_or_else(|| VideoError::NoTimes { name: name.to_owned() })?;
        let filters = found.filters();
        Ok(Self { path, _written: written, frames: found.count, seconds, filters })
    }

    pub(super) fn read(
        &self,
        wanted: &[usize],
        name: &str,
        limits: &VideoLimits,
        clock: Clock,
        each: &mut dyn FnMut(Rgb) -> Result<(), VideoError>,
    ) -> Result<(), VideoError> {
        // A frame each twenty-fifth of a second in and out: no version of ffmpeg then repeats or drops one.
        let filters = format!("select='{}',settb=1/25,setpts=N,{}", one_of(wanted), self.filters);
        let mut command = command("ffmpeg");
        // ffmpeg itself would turn the frames before they are RGB.
        command.args(["-nostdin", "-xerror", "-noautorotate", "-i"]).arg(input(&self.path));
        command.args(["-map", "0:V:0", "-vf", &filters, "-r", "25"]);
        command.args(["-frames:v", &wanted.len().to_string(), "-f", "image2pipe", "-c:v", "ppm", "pipe:1"]);
        let (mut running, output) = Running::start("ffmpeg", command, name, clock)?;
        let mut output = BufReader::new(output);
        for done in 0..wanted.len() {
            match image(&mut output, limits, name)? {
                Some(image) => each(image)?,
                None => {
                    running.end()?;
                    let needed = wanted.len();
                    return Err(VideoError::CutOff { name: name.to_owned(), found: done, needed });
                }
            }
        }
        running.end()
    }
}

/// The next line of a listing, `None` at its end.
fn short_line(output: &mut impl BufRead, name: &str) -> Result<Option<String>, VideoError> {
    let mut line = Vec::new();
    let read = output.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line);
    // A program that ends before its time says why by its complaint.
    let Ok(1..) = read else { return Ok(None) };
    if line.len() as u64 == LONGEST_LINE {
        return Err(VideoError::Stream { name: name.to_owned() });
    }
    Ok(Some(String::from_utf8_lossy(&line).into_owned()))
}

/// What `ffprobe` lists.
#[derive(Debug, Default)]
struct Packets {
    count: usize,
    /// Smallest time and largest end, in units of the time base.
    span: Option<(i64, i64)>,
    /// Packets without a time.
    untimed: usize,
    size: Option<(u32, u32)>,
    frame_rate: Option<f64>,
    time_base: Option<(f64, f64)>,
    /// Degrees counter-clockwise to the right way up.
    rotation: f64,
    /// Whether the video file says that it is RGB and not YUV.
    rgb: bool,
}

impl Packets {
    /// Reads a line such as `packet|pts=512|duration=512|flags=K__`.
    fn take(&mut self, line: &str) {
        let mut fields = line.trim_end().split('|');
        let section = fields.next();
        let pairs = || fields.clone().filter_map(|field| field.split_once('='));
        let value = |key: &str| pairs().find(|(name, _)| *name == key).map(|(_, value)| value);
        match section {
            Some("packet") => {
                // Decoded to lead in to the first frame, and not shown.
                if value("flags").is_some_and(|flags| flags.contains('D')) {
                    return;
                }
                self.count += 1;
                let number = |key| value(key)?.parse::<i64>().ok();
                let Some(start) = number("pts").or_else(|| number("dts")) else {
                    self.untimed += 1;
                    return;
                };
                let end = start.saturating_add(number("duration").unwrap_or(0));
                let (first, last) = self.span.unwrap_or((start, end));
                self.span = Some((first.min(start), last.max(end)));
            }
            Some("stream") => {
                let size = |key| value(key)?.parse::<u32>().ok().filter(|side| *side > 0);
                self.size = size("width").zip(size("height"));
                let fraction = |key| {
                    let (above, below) = value(key)?.split_once('/')?;
                    let parts = (above.parse::<f64>().ok()?, below.parse::<f64>().ok()?);
                    (parts.0 > 0.0 && parts.1 > 0.0).then_some(parts)
                };
                self.frame_rate = fraction("avg_frame_rate").map(|(above, below)| above / below);
                self.time_base = fraction("time_base");
                self.rgb = value("color_space") == Some("gbr");
                // Newer versions put the kind of the side data before the name.
                let rotation = pairs().find(|(name, _)| name.rsplit(':').next() == Some("rotation"));
                self.rotation = rotation.and_then(|(_, degrees)| degrees.parse().ok()).unwrap_or(0.0);
            }
            _ => {}
        }
    }

    /// Length of the video file, if anything says it.
    fn seconds(&self) -> Option<f64> {
        let listed = self.span.zip(self.time_base).filter(|_| self.untimed == 0);
        let listed = listed.map(|((first, last), (above, below))| {
            let seconds = |time: i64| time as f64 * above / below;
            seconds(last) - seconds(first)
        });
        let announced = || Some(self.count as f64 / self.frame_rate?);
        listed.filter(|seconds| *seconds > 0.0).or_else(announced)
    }

    /// Filters that make a frame the image that torchcodec makes of it.
    ///
    /// The rule is read from torchcodec's source (`SwScale.cpp`, `CpuDeviceInterface.cpp`, `Transform.cpp`)
    /// and was found to hold for 0.17, to the bit. Whatever the pixel format, swscale is given no flags,
    /// which is bicubic, and the frame is turned when it is RGB, by the nearest quarter. A frame that is not
    /// turned and as wide as a multiple of 32 goes to swscale directly, any other through a graph of
    /// filters. The two differ for video files that say to be RGB: swscale has BT.709 for them, filters have
    /// BT.601, and RGB of more than 8 bits is brought through YUV and back.
    fn filters(&self) -> String {
        let turn = match (self.rotation / 90.0).round() as i32 {
            1 => ",transpose=cclock",
            -1 => ",transpose=clock",
            2 | -2 => ",hflip,vflip",
            _ => "",
        };
        let direct = turn.is_empty() && self.size.is_some_and(|(width, _)| width % 32 == 0);
        let matrix = if direct && self.rgb { ":in_color_matrix=bt709" } else { "" };
        format!("scale=flags=bicubic{matrix},format=rgb24{turn}")
    }
}

/// Whether the number of a frame is one of these, in the language of ffmpeg's filters.
///
/// A tree, since a sum of hundreds of terms is deeper than that language allows.
fn one_of(indices: &[usize]) -> String {
    match indices {
        [] => "0".to_owned(),
        [index] => format!("eq(n,{index})"),
        more => {
            let (left, right) = more.split_at(more.len() / 2);
            format!("if(lt(n,{}),{},{})", right[0], one_of(left), one_of(right))
        }
    }
}

/// One image of the stream, `None` at its end.
fn image(
    output: &mut BufReader<ChildStdout>,
    limits: &VideoLimits,
    name: &str,
) -> Result<Option<Rgb>, VideoError> {
    let broken = || VideoError::Stream { name: name.to_owned() };
    let mut header = [const { String::new() }; 3];
    for line in &mut header {
        // A line of a header has a few digits; this is not the place to trust anybody.
        output.by_ref().take(32).read_line(line).map_err(|_| broken())?;
    }
    if header[0].is_empty() {
        return Ok(None);
    }
    let side = |text: &str| text.parse::<u32>().ok();
    let size = header[1].trim().split_once(' ').and_then(|(width, height)| side(width).zip(side(height)));
    let (Some((width, height)), "P6", "255") = (size, header[0].trim(), header[2].trim()) else {
        return Err(broken());
    };
    limits.frame.check_size(width, height, name).map_err(|source| VideoError::File(source.into()))?;
    let mut pixels = vec![0; width as usize * height as usize * 3];
    match output.read_exact(&mut pixels) {
        Ok(()) => Rgb::new(height as usize, width as usize, pixels).map(Some).ok_or_else(broken),
        // Half an image: the program died, and its complaint says why.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(_) => Err(broken()),
    }
}

/// A program that only reads files, of formats that name no other files.
fn command(program: &'static str) -> Command {
    let mut command = Command::new(program);
    command.args([
        "-v",
        "error",
        "-hide_banner",
        "-protocol_whitelist",
        "file",
        "-format_whitelist",
        FORMATS,
    ]);
    // Of its own group: Ctrl-C stops this program, which lets the batch at hand become whole.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command
}

/// A path that cannot be taken for a flag or a URL.
fn input(path: &Path) -> std::ffi::OsString {
    let mut input = std::ffi::OsString::from("file:");
    input.push(absolute(path));
    input
}

/// A program at work; killed when it is dropped or its time is over.
struct Running {
    program: &'static str,
    name: String,
    clock: Clock,
    child: Arc<Mutex<Child>>,
    /// Dropped when the program has ended, which lets the watcher go.
    done: Option<Sender<()>>,
    watcher: Option<JoinHandle<bool>>,
    complaint: Option<JoinHandle<String>>,
}

impl Running {
    fn start(
        program: &'static str,
        mut command: Command,
        name: &str,
        clock: Clock,
    ) -> Result<(Self, ChildStdout), VideoError> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => VideoError::NoFfmpeg { name: name.to_owned(), program },
            _ => VideoError::Start { name: name.to_owned(), program, source },
        })?;
        let output = child.stdout.take().expect("stdout is a pipe");
        let errors = child.stderr.take().expect("stderr is a pipe");
        let complaint = std::thread::spawn(move || {
            let mut errors = BufReader::new(errors);
            let mut text = Vec::new();
            // What follows is read away, or the program would wait for a reader.
            let _ = errors.by_ref().take(LONGEST_COMPLAINT).read_to_end(&mut text);
            let _ = io::copy(&mut errors, &mut io::sink());
            String::from_utf8_lossy(&text).into_owned()
        });
        let child = Arc::new(Mutex::new(child));
        let (done, ended) = channel();
        let watched = child.clone();
        let watcher = std::thread::spawn(move || {
            let late = ended.recv_timeout(clock.left()) == Err(RecvTimeoutError::Timeout);
            if late {
                let _ = lock(&watched).kill();
            }
            late
        });
        let running = Self {
            program,
            name: name.to_owned(),
            clock,
            child,
            done: Some(done),
            watcher: Some(watcher),
            complaint: Some(complaint),
        };
        Ok((running, output))
    }

    /// Waits for the end, which must be a good one.
    fn end(&mut self) -> Result<(), VideoError> {
        // Looked at again and again, so that the watcher can kill it meanwhile.
        let status = loop {
            match lock(&self.child).try_wait() {
                Ok(Some(status)) => break Some(status),
                Ok(None) => {}
                Err(_) => break None,
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        drop(self.done.take());
        if self.watcher.take().is_some_and(|watcher| watcher.join().unwrap_or(false)) {
            return Err(self.clock.over(&self.name));
        }
        if status.as_ref().is_some_and(ExitStatus::success) {
            return Ok(());
        }
        let said = self.complaint.take().and_then(|reader| reader.join().ok()).unwrap_or_default();
        Err(VideoError::Refused {
            name: self.name.clone(),
            program: self.program,
            said: complaint(&said, status),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Harmless when it has ended.
        let mut child = lock(&self.child);
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// A lock that a panic elsewhere does not close: the child is to be killed in any case.
fn lock(child: &Mutex<Child>) -> MutexGuard<'_, Child> {
    child.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a program said, in one line, without the addresses of its parts; or how it ended.
fn complaint(said: &str, status: Option<ExitStatus>) -> String {
    let lines = said.lines().map(|line| match line.split_once("] ") {
        Some((head, rest)) if head.starts_with('[') => rest.trim(),
        _ => line.trim(),
    });
    let mut lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    lines.dedup();
    lines.truncate(3);
    match (lines.is_empty(), status) {
        (false, _) => lines.join("; ").chars().take(300).collect(),
        (true, Some(status)) => status.to_string(),
        (true, None) => "ended without a word".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(lines: &[&str]) -> Packets {
        let mut packets = Packets::default();
        lines.iter().for_each(|line| packets.take(line));
        packets
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut listing = io::Cursor::new([b"packet|pts=1\n".as_slice(), &[b'x'; 1 << 17]].concat());

        assert_eq!(short_line(&mut listing, "a.mp4").unwrap().as_deref(), Some("packet|pts=1\n"));
        let error = short_line(&mut listing, "a.mp4").unwrap_err();
        assert!(matches!(error, VideoError::Stream { .. }), "{error}");
        assert_eq!(short_line(&mut io::empty(), "a.mp4").unwrap(), None);
    }

    const STREAM: &str = "stream|width=64|height=48|avg_frame_rate=25/1|time_base=1/12800";

    #[test]
    fn the_length_is_from_the_first_frame_to_the_end_of_the_last() {
        // Out of order, as video files with B-frames are stored.
        let lines = [
            "packet|pts=1024|dts=0|duration=512|flags=K__",
            "packet|pts=2048|dts=512|duration=512|flags=___",
        ];
        let packets =
            listed(&[lines[0], lines[1], "packet|pts=1536|dts=1024|duration=512|flags=___", STREAM]);

        assert_eq!((packets.count, packets.size), (3, Some((64, 48))));
        assert!((packets.seconds().unwrap() - 0.12).abs() < 1e-12);
    }

    #[test]
    fn packets_that_are_not_shown_do_not_count() {
        let lines = ["packet|pts=-512|duration=512|flags=KD_", "packet|pts=0|duration=512|flags=___"];

        let packets = listed(&[lines[0], lines[1], STREAM]);

        assert_eq!((packets.count, packets.seconds()), (1, Some(0.04)));
    }

    #[test]
    fn without_times_the_announced_rate_counts() {
        let packets = listed(&["packet|pts=N/A|dts=N/A|duration=1|flags=K__", STREAM]);
        assert_eq!(packets.seconds(), Some(0.04));
        let packets =
            listed(&["packet|pts=N/A|duration=N/A|flags=K__", "stream|width=8|height=8|avg_frame_rate=0/0"]);
        assert_eq!(packets.seconds(), None);
    }

    #[test]
    fn colours_and_turns_are_torchcodecs() {
        let filters =
            |width: u32, rest: &str| listed(&[&format!("stream|width={width}|height=48{rest}")]).filters();
        let plain = "scale=flags=bicubic,format=rgb24";

        assert_eq!(filters(64, "|color_space=bt709"), plain);
        let rgb = "scale=flags=bicubic:in_color_matrix=bt709,format=rgb24";
        assert_eq!(filters(64, "|color_space=gbr"), rgb);
        assert_eq!(filters(66, "|color_space=gbr"), plain);
        let turned = [(-90, ",transpose=clock"), (46, ",transpose=cclock"), (-180, ",hflip,vflip"), (44, "")];
        for (degrees, turn) in turned {
            // As ffprobe 5 writes it, and newer ones.
            for key in ["side_data|rotation", "side_datum/display_matrix:rotation"] {
                assert_eq!(filters(64, &format!("|{key}={degrees}")), format!("{plain}{turn}"));
            }
        }
        assert_eq!(
            filters(64, "|color_space=gbr|side_data|rotation=90"),
            format!("{plain},transpose=cclock")
        );
    }

    #[test]
    fn one_of_many_frames_is_asked_for_in_few_steps() {
        assert_eq!(one_of(&[3]), "eq(n,3)");
        assert_eq!(one_of(&[0, 5, 9]), "if(lt(n,5),eq(n,0),if(lt(n,9),eq(n,5),eq(n,9)))");
        let depth = one_of(&(0..4096).collect::<Vec<_>>()).chars().rev().take_while(|c| *c == ')').count();
        assert_eq!(depth, 13);
    }

    #[test]
    fn a_complaint_is_one_short_line() {
        let said =
            "[mov,mp4 @ 0x55] moov atom not found\nfile:/a.mp4: Invalid data\nfile:/a.mp4: Invalid data\n";
        assert_eq!(complaint(said, None), "moov atom not found; file:/a.mp4: Invalid data");
        assert_eq!(complaint("\n", None), "ended without a word");
    }
}
