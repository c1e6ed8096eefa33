//! TCP to an instance, under TLS where it is asked for: what HTTP, PostgreSQL and Redis are spoken over.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::Failure;
use super::answer::{room, unreached};
use super::tls::Tls;

/// Bytes asked for at a time.
const PIECE: usize = 8 << 10;

/// A connection.
#[derive(Debug)]
pub(super) enum Stream {
    /// In the clear.
    Plain(TcpStream),
    /// Encrypted.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Connects; with `tls`, greets by it.
    pub(super) async fn connect(to: SocketAddr, tls: Option<&Tls>) -> Result<Stream, Failure> {
        let stream = Stream::Plain(connect(to).await?);
        match tls {
            Some(tls) => stream.encrypt(to, tls).await,
            None => Ok(stream),
        }
    }

    /// From here on by TLS.
    pub(super) async fn encrypt(self, to: SocketAddr, tls: &Tls) -> Result<Stream, Failure> {
        match self {
            Stream::Plain(stream) => Ok(Stream::Tls(Box::new(tls.connect(to.ip(), stream).await?))),
            Stream::Tls(_) => Ok(self),
        }
    }

    /// Sends all of `bytes`.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let sent = async {
            self.write_all(bytes).await?;
            self.flush().await
        };
        sent.await.map_err(|error| unreached(&error))
    }

    /// Reads what is there onto the end of `buffer`, and how many bytes that was; 0: the other end has closed.
    pub(super) async fn read_more(&mut self, buffer: &mut Vec<u8>) -> Result<usize, Failure> {
        buffer.reserve(PIECE);
        self.read_buf(buffer).await.map_err(|error| unreached(&error))
    }
}

/// A TCP connection whose small requests leave at once.
pub(super) async fn connect(to: SocketAddr) -> Result<TcpStream, Failure> {
    room()?;
    let stream = TcpStream::connect(to).await.map_err(|error| unreached(&error))?;
    stream.set_nodelay(true).map_err(|error| unreached(&error))?;
    Ok(stream)
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
