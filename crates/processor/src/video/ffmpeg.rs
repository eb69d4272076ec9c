//! Video files (mp4, mov, webm, …), decoded by the `ffmpeg` that is installed.
//!
//! A video file is read twice: `ffprobe` lists its packets, which gives the number of frames and their timestamps without decoding,
//! and `ffmpeg` decodes up to the last sampled frame and writes the sampled ones to a pipe. Both stream, so memory does not grow
//! with the file.
//!
//! Frame rate, duration, colors and rotation are those of torchcodec, with which transformers reads video files: the frame rate is
//! frames over the time from the start of the first to the end of the last; frames are rotated by multiples of 90 degrees, and not
//! mirrored where the file asks for it, although players do that.
//!
//! Files may be hostile. The programs may read this one file and no network, formats that refer to other files (playlists) are
//! disabled, the size of a frame is limited, and the programs are killed at the deadline and on any error.

use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::NamedTempFile;

use super::deadline::Deadline;
use super::error::VideoError;
use super::limits::VideoLimits;
use crate::media::Rgb;

/// Containers that do not refer to other files.
const FORMATS: &str =
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,h264,hevc,ivf,m4v";

/// Bytes of stderr that are kept.
const MAX_STDERR_BYTES: u64 = 2000;

/// Maximum bytes of a line of ffprobe; those of packets have about a hundred.
const MAX_LINE_BYTES: u64 = 1 << 16;

/// A video file of which `ffprobe` has listed the packets.
pub(super) struct FfmpegVideo {
    path: PathBuf,
    /// Deletes the file of a video that was given as bytes when dropped.
    _temporary: Option<NamedTempFile>,
    /// Number of frames.
    pub(super) frames: usize,
    /// From the start of the first frame to the end of the last.
    pub(super) seconds: f64,
    /// Filter graph from a decoded frame to RGB.
    filters: String,
}

impl FfmpegVideo {
    pub(super) fn open(
        path: PathBuf,
        temporary: Option<NamedTempFile>,
        name: &str,
        limits: &VideoLimits,
        deadline: Deadline,
    ) -> Result<Self, VideoError> {
        let mut command = command("ffprobe");
        command.args(["-select_streams", "V:0", "-show_entries"]);
        let stream = "stream=width,height,color_space,avg_frame_rate,time_base:stream_side_data=rotation";
        command.arg(format!("packet=pts,dts,duration,flags:{stream}"));
        command.args(["-of", "compact=nokey=0", "-i"]).arg(input(&path));
        let (mut process, output) = FfmpegProcess::start("ffprobe", command, name, deadline)?;
        let mut packets = Packets::default();
        let mut output = BufReader::new(output);
        while let Some(line) = read_line(&mut output, name)? {
            packets.parse_line(&line);
            if packets.count > limits.max_frames {
                return Err(VideoError::TooManyFrames {
                    name: name.to_owned(),
                    found: packets.count,
                    limit: limits.max_frames,
                });
            }
        }
        process.wait()?;
        let (width, height) = packets.size.ok_or_else(|| VideoError::NoFrames { name: name.to_owned() })?;
        limits.check_frame_size(width, height, name)?;
        if packets.count == 0 {
            return Err(VideoError::NoFrames { name: name.to_owned() });
        }
        let seconds = packets.seconds().ok_or_else(|| VideoError::NoTimestamps { name: name.to_owned() })?;
        let filters = packets.filters();
        Ok(Self { path, _temporary: temporary, frames: packets.count, seconds, filters })
    }

    pub(super) fn read(
        &self,
        wanted: &[usize],
        name: &str,
        limits: &VideoLimits,
        deadline: Deadline,
        on_frame: &mut dyn FnMut(Rgb) -> Result<(), VideoError>,
    ) -> Result<(), VideoError> {
        // Constant frame rates in and out: no version of ffmpeg then duplicates or drops a frame.
        let filters = format!("select='{}',settb=1/25,setpts=N,{}", select_expression(wanted), self.filters);
        let mut command = command("ffmpeg");
        // By itself ffmpeg would rotate frames before the conversion to RGB.
        command.args(["-nostdin", "-xerror", "-noautorotate", "-i"]).arg(input(&self.path));
        command.args(["-map", "0:V:0", "-vf", &filters, "-r", "25"]);
        command.args(["-frames:v", &wanted.len().to_string(), "-f", "image2pipe", "-c:v", "ppm", "pipe:1"]);
        let (mut process, output) = FfmpegProcess::start("ffmpeg", command, name, deadline)?;
        let mut output = BufReader::new(output);
        for done in 0..wanted.len() {
            match read_ppm(&mut output, limits, name)? {
                Some(frame) => on_frame(frame)?,
                None => {
                    process.wait()?;
                    let needed = wanted.len();
                    return Err(VideoError::Truncated { name: name.to_owned(), found: done, needed });
                }
            }
        }
        process.wait()
    }
}

/// The next line of ffprobe's output, `None` at its end.
fn read_line(output: &mut impl BufRead, name: &str) -> Result<Option<String>, VideoError> {
    let mut line = Vec::new();
    let read = output.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line);
    // A program that fails explains it on stderr.
    let Ok(1..) = read else { return Ok(None) };
    if line.len() as u64 == MAX_LINE_BYTES {
        return Err(VideoError::InvalidOutput { name: name.to_owned() });
    }
    Ok(Some(String::from_utf8_lossy(&line).into_owned()))
}

/// Fields of a line of ffprobe, `width=64|height=48`.
struct Fields<'a>(&'a str);

impl<'a> Fields<'a> {
    fn pairs(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.split('|').filter_map(|field| field.split_once('='))
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        self.pairs().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    fn parse<T: FromStr>(&self, key: &str) -> Option<T> {
        self.get(key)?.parse().ok()
    }

    /// Numerator and denominator, if both are positive.
    fn fraction(&self, key: &str) -> Option<(f64, f64)> {
        let (above, below) = self.get(key)?.split_once('/')?;
        let (above, below) = (above.parse::<f64>().ok()?, below.parse::<f64>().ok()?);
        (above > 0.0 && below > 0.0).then_some((above, below))
    }
}

/// Packets and stream properties in the output of `ffprobe`.
#[derive(Debug, Default)]
struct Packets {
    count: usize,
    /// Earliest start and latest end, in units of the time base.
    span: Option<(i64, i64)>,
    /// Packets without a timestamp.
    untimed: usize,
    size: Option<(u32, u32)>,
    frame_rate: Option<f64>,
    time_base: Option<(f64, f64)>,
    /// Counterclockwise rotation for display, in degrees.
    rotation: f64,
    /// Whether the color space is RGB and not YUV.
    rgb: bool,
}

impl Packets {
    /// Parses a line such as `packet|pts=512|duration=512|flags=K__`.
    fn parse_line(&mut self, line: &str) {
        let (section, fields) = line.trim_end().split_once('|').unwrap_or((line, ""));
        match section {
            "packet" => self.add_packet(&Fields(fields)),
            "stream" => self.set_stream(&Fields(fields)),
            _ => {}
        }
    }

    fn add_packet(&mut self, fields: &Fields<'_>) {
        // Discarded: decoded only for the frames after it.
        if fields.get("flags").is_some_and(|flags| flags.contains('D')) {
            return;
        }
        self.count += 1;
        let Some(start) = fields.parse::<i64>("pts").or_else(|| fields.parse("dts")) else {
            self.untimed += 1;
            return;
        };
        let end = start.saturating_add(fields.parse("duration").unwrap_or(0));
        let (first, last) = self.span.unwrap_or((start, end));
        self.span = Some((first.min(start), last.max(end)));
    }

    fn set_stream(&mut self, fields: &Fields<'_>) {
        let side = |key| fields.parse::<u32>(key).filter(|side| *side > 0);
        self.size = side("width").zip(side("height"));
        self.frame_rate = fields.fraction("avg_frame_rate").map(|(above, below)| above / below);
        self.time_base = fields.fraction("time_base");
        self.rgb = fields.get("color_space") == Some("gbr");
        // Newer versions prefix the name with the type of the side data.
        let rotation = fields.pairs().find(|(name, _)| name.rsplit(':').next() == Some("rotation"));
        self.rotation = rotation.and_then(|(_, degrees)| degrees.parse().ok()).unwrap_or(0.0);
    }

    /// Duration from the timestamps, else from the average frame rate.
    fn seconds(&self) -> Option<f64> {
        let timed = self.span.zip(self.time_base).filter(|_| self.untimed == 0);
        let timed = timed.map(|((first, last), (above, below))| {
            let seconds = |time: i64| time as f64 * above / below;
            seconds(last) - seconds(first)
        });
        let averaged = || Some(self.count as f64 / self.frame_rate?);
        timed.filter(|seconds| *seconds > 0.0).or_else(averaged)
    }

    /// Filter graph with the RGB output of torchcodec.
    ///
    /// Derived from torchcodec's source (`SwScale.cpp`, `CpuDeviceInterface.cpp`, `Transform.cpp`) and equal to 0.17 to the bit. For
    /// all pixel formats swscale gets no flags, which means bicubic, and frames are rotated after the conversion to RGB, by the
    /// nearest multiple of 90 degrees. A frame without rotation and with a width divisible by 32 is converted by swscale directly,
    /// any other by a filter graph. The two differ for RGB video: swscale uses BT.709, the filter graph BT.601, and RGB of more
    /// than 8 bits is converted to YUV and back.
    fn filters(&self) -> String {
        let rotate = match (self.rotation / 90.0).round() as i32 {
            1 => ",transpose=cclock",
            -1 => ",transpose=clock",
            2 | -2 => ",hflip,vflip",
            _ => "",
        };
        let is_direct = rotate.is_empty() && self.size.is_some_and(|(width, _)| width % 32 == 0);
        let matrix = if is_direct && self.rgb { ":in_color_matrix=bt709" } else { "" };
        format!("scale=flags=bicubic{matrix},format=rgb24{rotate}")
    }
}

/// Expression for ffmpeg's `select` filter: whether the frame number `n` is one of these.
///
/// A binary tree, since a sum of hundreds of terms exceeds the nesting that ffmpeg's parser allows.
fn select_expression(indices: &[usize]) -> String {
    match indices {
        [] => "0".to_owned(),
        [index] => format!("eq(n,{index})"),
        more => {
            let (left, right) = more.split_at(more.len() / 2);
            format!("if(lt(n,{}),{},{})", right[0], select_expression(left), select_expression(right))
        }
    }
}

/// Reads a frame in PPM format, `None` at the end of the stream.
fn read_ppm(
    output: &mut BufReader<ChildStdout>,
    limits: &VideoLimits,
    name: &str,
) -> Result<Option<Rgb>, VideoError> {
    let invalid = || VideoError::InvalidOutput { name: name.to_owned() };
    let mut header = [const { String::new() }; 3];
    for line in &mut header {
        // Bounded: a header line of PPM has a few digits.
        output.by_ref().take(32).read_line(line).map_err(|_| invalid())?;
    }
    if header[0].is_empty() {
        return Ok(None);
    }
    let side = |text: &str| text.parse::<u32>().ok();
    let size = header[1].trim().split_once(' ').and_then(|(width, height)| side(width).zip(side(height)));
    let (Some((width, height)), "P6", "255") = (size, header[0].trim(), header[2].trim()) else {
        return Err(invalid());
    };
    limits.check_frame_size(width, height, name)?;
    let mut pixels = vec![0; width as usize * height as usize * 3];
    match output.read_exact(&mut pixels) {
        Ok(()) => Rgb::new(height as usize, width as usize, pixels).map(Some).ok_or_else(invalid),
        // Half a frame: the program failed, and explains it on stderr.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(_) => Err(invalid()),
    }
}

/// A command that reads local files only, in formats that do not refer to other files.
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
    // In a process group of its own: Ctrl-C then reaches only our process, which finishes the current batch.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command
}

/// A path that ffmpeg does not parse as an option or a URL.
fn input(path: &Path) -> std::ffi::OsString {
    let mut input = std::ffi::OsString::from("file:");
    input.push(std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
    input
}

/// A running ffmpeg or ffprobe; killed on drop and at the deadline.
struct FfmpegProcess {
    program: &'static str,
    name: String,
    deadline: Deadline,
    child: Arc<Mutex<Child>>,
    /// Dropped when the program has exited, which ends the watcher.
    done: Option<Sender<()>>,
    watcher: Option<JoinHandle<bool>>,
    stderr: Option<JoinHandle<String>>,
}

impl FfmpegProcess {
    fn start(
        program: &'static str,
        mut command: Command,
        name: &str,
        deadline: Deadline,
    ) -> Result<(Self, ChildStdout), VideoError> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => VideoError::NoFfmpeg { name: name.to_owned(), program },
            _ => VideoError::Start { name: name.to_owned(), program, source },
        })?;
        let output = child.stdout.take().expect("stdout is a pipe");
        let errors = child.stderr.take().expect("stderr is a pipe");
        let stderr = std::thread::spawn(move || {
            let mut errors = BufReader::new(errors);
            let mut text = Vec::new();
            // The rest is drained, or the program would block on a full pipe.
            let _ = errors.by_ref().take(MAX_STDERR_BYTES).read_to_end(&mut text);
            let _ = io::copy(&mut errors, &mut io::sink());
            String::from_utf8_lossy(&text).into_owned()
        });
        let child = Arc::new(Mutex::new(child));
        let (done, ended) = channel();
        let watched = child.clone();
        let watcher = std::thread::spawn(move || {
            let is_late = ended.recv_timeout(deadline.remaining()) == Err(RecvTimeoutError::Timeout);
            if is_late {
                let _ = lock(&watched).kill();
            }
            is_late
        });
        let process = Self {
            program,
            name: name.to_owned(),
            deadline,
            child,
            done: Some(done),
            watcher: Some(watcher),
            stderr: Some(stderr),
        };
        Ok((process, output))
    }

    /// Waits for the exit of the program; an error unless it succeeded.
    fn wait(&mut self) -> Result<(), VideoError> {
        // Polled, so that the watcher can lock the child and kill it meanwhile.
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
            return Err(self.deadline.exceeded(&self.name));
        }
        if status.as_ref().is_some_and(ExitStatus::success) {
            return Ok(());
        }
        let stderr = self.stderr.take().and_then(|reader| reader.join().ok()).unwrap_or_default();
        Err(VideoError::Ffmpeg {
            name: self.name.clone(),
            program: self.program,
            message: error_message(&stderr, status),
        })
    }
}

impl Drop for FfmpegProcess {
    fn drop(&mut self) {
        // Harmless after its exit.
        let mut child = lock(&self.child);
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Ignores poisoning: the child must be killed even after a panic elsewhere.
fn lock(child: &Mutex<Child>) -> MutexGuard<'_, Child> {
    child.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lines of stderr as one, without the addresses of components; the exit status where there are none.
fn error_message(stderr: &str, status: Option<ExitStatus>) -> String {
    let lines = stderr.lines().map(|line| match line.split_once("] ") {
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

    fn parsed(lines: &[&str]) -> Packets {
        let mut packets = Packets::default();
        lines.iter().for_each(|line| packets.parse_line(line));
        packets
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut listing = io::Cursor::new([b"packet|pts=1\n".as_slice(), &[b'x'; 1 << 17]].concat());

        assert_eq!(read_line(&mut listing, "a.mp4").unwrap().as_deref(), Some("packet|pts=1\n"));
        let error = read_line(&mut listing, "a.mp4").unwrap_err();
        assert!(matches!(error, VideoError::InvalidOutput { .. }), "{error}");
        assert_eq!(read_line(&mut io::empty(), "a.mp4").unwrap(), None);
    }

    const STREAM: &str = "stream|width=64|height=48|avg_frame_rate=25/1|time_base=1/12800";

    #[test]
    fn the_duration_is_from_the_first_frame_to_the_end_of_the_last() {
        // Out of order, as video files with B-frames are stored.
        let lines = [
            "packet|pts=1024|dts=0|duration=512|flags=K__",
            "packet|pts=2048|dts=512|duration=512|flags=___",
        ];
        let packets =
            parsed(&[lines[0], lines[1], "packet|pts=1536|dts=1024|duration=512|flags=___", STREAM]);

        assert_eq!((packets.count, packets.size), (3, Some((64, 48))));
        assert!((packets.seconds().unwrap() - 0.12).abs() < 1e-12);
    }

    #[test]
    fn discarded_packets_do_not_count() {
        let lines = ["packet|pts=-512|duration=512|flags=KD_", "packet|pts=0|duration=512|flags=___"];

        let packets = parsed(&[lines[0], lines[1], STREAM]);

        assert_eq!((packets.count, packets.seconds()), (1, Some(0.04)));
    }

    #[test]
    fn without_timestamps_the_average_frame_rate_counts() {
        let packets = parsed(&["packet|pts=N/A|dts=N/A|duration=1|flags=K__", STREAM]);
        assert_eq!(packets.seconds(), Some(0.04));
        let packets =
            parsed(&["packet|pts=N/A|duration=N/A|flags=K__", "stream|width=8|height=8|avg_frame_rate=0/0"]);
        assert_eq!(packets.seconds(), None);
    }

    #[test]
    fn colors_and_rotation_are_those_of_torchcodec() {
        let filters =
            |width: u32, rest: &str| parsed(&[&format!("stream|width={width}|height=48{rest}")]).filters();
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
    fn the_select_expression_is_a_balanced_tree() {
        assert_eq!(select_expression(&[3]), "eq(n,3)");
        assert_eq!(select_expression(&[0, 5, 9]), "if(lt(n,5),eq(n,0),if(lt(n,9),eq(n,5),eq(n,9)))");
        let depth =
            select_expression(&(0..4096).collect::<Vec<_>>()).chars().rev().take_while(|c| *c == ')').count();
        assert_eq!(depth, 13);
    }

    #[test]
    fn an_error_message_is_one_short_line() {
        let stderr =
            "[mov,mp4 @ 0x55] moov atom not found\nfile:/a.mp4: Invalid data\nfile:/a.mp4: Invalid data\n";
        assert_eq!(error_message(stderr, None), "moov atom not found; file:/a.mp4: Invalid data");
        assert_eq!(error_message("\n", None), "ended without a word");
    }
}
