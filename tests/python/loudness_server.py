"""The OpenAI-style server of loudness-tts with a voice file of our own: loudness_server.py VOICE.onnx --port PORT

Its catalogue only knows voices that must be downloaded. Everything else is the package's.
"""

import argparse
import os

os.environ["LOUDNESS_TTS_OFFLINE"] = "1"

from loudness_tts import catalog, server
from loudness_tts.engine import TTS

parser = argparse.ArgumentParser()
parser.add_argument("voice")
parser.add_argument("--port", type=int, required=True)
args = parser.parse_args()
tts = TTS(voice=args.voice, offline=True, threads=1)
ours = tts.preload()


def find_voice(name="auto", language=None):
    return ours if name in ("auto", ours.name) else catalog.find_voice(name, language)


class Listed:
    """As the catalogue's voices are listed, with an id that is no path."""

    def to_dict(self):
        return {**ours.to_dict(), "id": ours.name, "language": "English (United States)"}


server.find_voice = find_voice
server.voices = lambda *_, **__: [Listed()]
server.serve("127.0.0.1", args.port, tts=tts)
