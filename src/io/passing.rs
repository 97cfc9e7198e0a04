//! Lines, bytes and descriptors over a Unix stream socket (unix(7), SCM_RIGHTS), between two processes of ours.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Descriptors of one message; the kernel takes 253 (SCM_MAX_FD).
const BATCH: usize = 64;
/// The byte that carries a batch of them.
const CARRIER: u8 = b'+';
/// Most that is kept of what nobody has asked for yet: the longest line is one of 64 ports of 64 queues, and neighbours.
const MOST_BYTES: usize = 64 << 20;
const MOST_DESCRIPTORS: usize = 64 * 64;

/// One end.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    bytes: VecDeque<u8>,
    /// Bytes in front that no line ends in: a long one comes in many pieces, of which each is looked through once.
    searched: usize,
    descriptors: VecDeque<OwnedFd>,
}

impl Channel {
    /// On a connected socket, whose time-outs and mode hold.
    pub fn new(stream: UnixStream) -> Channel {
        Channel { stream, bytes: VecDeque::new(), searched: 0, descriptors: VecDeque::new() }
    }

    /// The socket.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends a line; what is in it of line feeds becomes spaces.
    pub fn say(&mut self, line: &str) -> io::Result<()> {
        self.send(format!("{}\n", line.replace('\n', " ")).as_bytes())
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        io::Write::write_all(&mut self.stream, bytes)
    }

    /// Sends descriptors, which stay open here.
    pub fn pass(&mut self, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        for batch in descriptors.chunks(BATCH) {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fits = control.push(SendAncillaryMessage::ScmRights(batch));
            assert!(fits, "the space is that of a batch");
            sendmsg(&self.stream, &[IoSlice::new(&[CARRIER])], &mut control, SendFlags::NOSIGNAL)?;
        }
        Ok(())
    }

    /// The next line, without its end; `None` where that blocks and the socket does not.
    pub fn line(&mut self) -> io::Result<Option<String>> {
        loop {
            let end = self.bytes.range(self.searched..).position(|byte| *byte == b'\n');
            if let Some(end) = end.map(|end| end + self.searched) {
                let line: Vec<u8> = self.take_bytes(end + 1).take(end).collect();
                return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
            }
            self.searched = self.bytes.len();
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// So many bytes. The socket blocks.
    pub fn exactly(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.bytes.len() < count {
            self.fill_blocking()?;
        }
        Ok(self.take_bytes(count).collect())
    }

    /// So many descriptors. The socket blocks.
    pub fn descriptors(&mut self, count: usize) -> io::Result<Vec<OwnedFd>> {
        let carriers = self.exactly(count.div_ceil(BATCH))?;
        if carriers.iter().any(|byte| *byte != CARRIER) || self.descriptors.len() < count {
            return Err(io::Error::other("descriptors were announced and did not come"));
        }
        Ok(self.descriptors.drain(..count).collect())
    }

    /// Waits until the other end is closed.
    pub fn wait_for_end(&mut self) -> io::Result<()> {
        loop {
            match self.fill_blocking() {
                Ok(()) => drop(self.take_bytes(self.bytes.len())),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn take_bytes(&mut self, count: usize) -> impl Iterator<Item = u8> {
        self.searched = 0;
        self.bytes.drain(..count)
    }

    fn fill_blocking(&mut self) -> io::Result<()> {
        if self.fill()? { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
    }

    /// Takes what is there. False: nothing, within the time that the socket waits.
    fn fill(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 16 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let count = loop {
            let mut into = [IoSliceMut::new(&mut bytes)];
            match recvmsg(&self.stream, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(message) => break message.bytes,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        };
        let messages = control.drain();
        let rights = messages.filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        });
        self.descriptors.extend(rights.flatten());
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.bytes.extend(&bytes[..count]);
        if self.bytes.len() > MOST_BYTES || self.descriptors.len() > MOST_DESCRIPTORS {
            return Err(io::Error::other("the other process says what no softgate would"));
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, Write as _};
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn lines_bytes_and_descriptors_come_in_their_order() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let (mut ours, mut theirs) = (Channel::new(ours), Channel::new(theirs));
        let files: Vec<std::fs::File> = (0..150u8)
            .map(|number| {
                let mut file = tempfile::tempfile().expect("a file");
                file.write_all(&[number]).expect("room");
                file
            })
            .collect();
        let passed: Vec<BorrowedFd<'_>> = files.iter().map(|file| file.as_fd()).collect();
        ours.say("two\nlines").expect("sent");
        ours.send(&[1, 2, 3, b'\n']).expect("sent");
        ours.pass(&passed).expect("sent");
        ours.say("after").expect("sent");
        drop((ours, files));

        assert_eq!(theirs.line().expect("read").as_deref(), Some("two lines"));
        assert_eq!(theirs.exactly(4).expect("read"), [1, 2, 3, b'\n']);
        let came = theirs.descriptors(150).expect("descriptors");
        for (number, descriptor) in came.into_iter().enumerate() {
            let mut file = std::fs::File::from(descriptor);
            let mut byte = [0];
            file.rewind().and_then(|()| file.read_exact(&mut byte)).expect("a byte");
            assert_eq!(usize::from(byte[0]), number);
        }
        assert_eq!(theirs.line().expect("read").as_deref(), Some("after"));
        theirs.wait_for_end().expect("it has ended");
        assert!(theirs.line().is_err());
    }

    #[test]
    fn who_does_not_wait_is_told_nothing() {
        let (mut ours, theirs) = UnixStream::pair().expect("a pair");
        theirs.set_nonblocking(true).expect("a mode");
        let mut theirs = Channel::new(theirs);
        assert_eq!(theirs.line().expect("no error"), None);
        ours.write_all(b"half a li").expect("sent");
        assert_eq!(theirs.line().expect("no error"), None);
        ours.write_all(b"ne\n").expect("sent");
        assert_eq!(theirs.line().expect("no error").as_deref(), Some("half a line"));
        ours.write_all(b"a line\nthe ne").expect("sent");
        assert_eq!(theirs.line().expect("no error").as_deref(), Some("a line"));
        assert_eq!(theirs.line().expect("no error"), None);
        ours.write_all(b"xt\nand\n").expect("sent");
        assert_eq!(theirs.line().expect("no error").as_deref(), Some("the next"));
        assert_eq!(theirs.line().expect("no error").as_deref(), Some("and"));
        // Announced, but none came.
        ours.write_all(b"+").expect("sent");
        theirs.stream().set_nonblocking(false).expect("a mode");
        assert!(theirs.descriptors(1).is_err());
    }
}
