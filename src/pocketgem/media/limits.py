"""How much a stranger's file may be, and what it may cost. docs/media-limits.md says why these numbers."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20
MEGA = 1_000_000


@dataclass(frozen=True)
class Limits:
    """Bounds of one file. Memory: a decoder process and what it hands over stay within 256 MiB together."""

    picture_bytes: int = 64 * MIB
    picture_pixels: int = 24 * MEGA  # 4 bytes each in the decoder and 3 here
    webp_pixels: int = 10 * MEGA  # its decoder keeps two canvases, and copies them twice
    progressive_pixels: int = 16 * MEGA  # JPEG in several passes: 6 bytes more each, until the last
    jpeg_pixels: int = 52 * MEGA  # above picture_pixels decoded at a half of width and height
    jpeg_scans: int = 100  # passes: each goes over all pixels, however few its bytes
    side: int = 65_535  # pixels
    sound_bytes: int = 256 * MIB
    sound_seconds: int = 30 * 60  # 16,000 x 4 bytes each: 110 MiB
    sound_rates: tuple[int, int] = (1_000, 384_000)
    channels: int = 16
    peak: float = 16.0  # of a sample, where 1 is full scale
    clip_bytes: int = 512 * MIB
    clip_seconds: float = 60.0
    clip_frames: int = 256
    clip_pixels: int = 20 * MEGA  # of all frames together: larger frames are made smaller
    video_pixels: int = 4096 * 2304  # of a frame as it is stored
    packets: int = 100_000  # of a video, looked at to count its frames
    seconds: float = 1.8  # for a file of any kind
    seconds_per_byte: float = 1 / (256 * 1024)  # more: who wants more work must send more
    picture_seconds: float = 6.0  # at most
    most_seconds: float = 60.0  # for a sound or a video
    address_space: int = 200 * MIB  # of a decoder, more than it has when it is ready

    def time(self, room: str, size: int) -> float:
        """Seconds that a file of so many bytes gets."""
        most = self.picture_seconds if room == "picture" else self.most_seconds
        return min(most, self.seconds + size * self.seconds_per_byte)


LIMITS = Limits()
