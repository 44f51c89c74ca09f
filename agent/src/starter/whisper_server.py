"""A small Whisper server for UnaMesh's starter engines: faster-whisper behind OpenAI's API of transcriptions.

It answers only when the model is in memory and warm, and tells its health while it transcribes, one utterance after
the other. Temperature 0: the same sound gives the same words, on any machine. Nothing that is heard is logged.
"""

import argparse
import http.server
import io
import json
import re
import threading

MAX_BODY = 64 * 1024 * 1024


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="a directory with a CTranslate2 model")
    parser.add_argument("--alias", required=True, help="the model's name in the API")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    # Threads that wait for each other collapse beside a busy neighbour: 3 s of speech took them 50 s.
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--beam", type=int, default=5, help="beams; 1 = greedy")
    return parser.parse_args()


class Refusal(Exception):
    """An answer with a status other than 200."""

    def __init__(self, status, message, code=None):
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": "invalid_request_error", "code": code}}


class Whisper:
    def __init__(self, args):
        import faster_whisper
        import numpy

        self.decode = faster_whisper.decode_audio
        self.alias, self.beam = args.alias, args.beam
        self.model = faster_whisper.WhisperModel(
            args.model, device="cpu", compute_type="int8", cpu_threads=args.threads, local_files_only=True
        )
        self.turn = threading.Lock()
        self.hear(numpy.zeros(16000, dtype=numpy.float32), {}, words=False)

    def hear(self, sound, fields, words):
        text = lambda name: fields.get(name, b"").decode("utf-8", "replace").strip() or None
        with self.turn:
            segments, info = self.model.transcribe(
                sound,
                # An English model knows no other.
                language=text("language") if self.model.model.is_multilingual else "en",
                initial_prompt=text("prompt"),
                beam_size=self.beam,
                temperature=0.0,
                condition_on_previous_text=False,
                word_timestamps=words,
            )
            return list(segments), info

    def transcribe(self, fields):
        model = fields.get("model", b"whisper-1").decode("utf-8", "replace")
        if model not in ("whisper-1", self.alias):
            raise Refusal(404, f"The model {model!r} does not exist.", "model_not_found")
        form = fields.get("response_format", b"json")
        if form not in (b"json", b"verbose_json"):
            raise Refusal(400, "response_format must be json or verbose_json.")
        try:
            sound = self.decode(io.BytesIO(fields["file"]), sampling_rate=16000)
        except KeyError:
            raise Refusal(400, "The field 'file' is missing.") from None
        except Exception as error:
            raise Refusal(400, f"The file is no sound that can be read: {error}") from None
        words = fields.get("timestamp_granularities[]") == b"word"
        segments, info = self.hear(sound, fields, words)
        answer = {"text": "".join(segment.text for segment in segments).strip()}
        if form == b"verbose_json":
            whole = [{"id": n, "start": s.start, "end": s.end, "text": s.text, "avg_logprob": s.avg_logprob,
                      "no_speech_prob": s.no_speech_prob} for n, s in enumerate(segments)]
            answer |= {"task": "transcribe", "language": info.language, "duration": info.duration, "segments": whole}
        if words:
            spoken = [word for segment in segments for word in segment.words]
            answer["words"] = [{"word": w.word.strip(), "start": w.start, "end": w.end} for w in spoken]
        return answer


def form(kind, body):
    """The fields of multipart/form-data by their names, as bytes."""
    boundary = re.search(r'boundary="?([^";]+)', kind or "")
    if not boundary:
        raise Refusal(400, "Send multipart/form-data.")
    fields = {}
    for part in body.split(b"--" + boundary.group(1).encode())[1:-1]:
        head, _, value = part.partition(b"\r\n\r\n")
        name = re.search(rb'[; ]name="([^"]*)"', head)
        if name:
            fields[name.group(1).decode("utf-8", "replace")] = value.removesuffix(b"\r\n")
    return fields


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are two writes: without this the second waits for the first one's acknowledgement.
    disable_nagle_algorithm = True
    whisper = None

    def do_GET(self):
        model = {"id": self.whisper.alias, "object": "model", "owned_by": "faster-whisper",
                 "task": "automatic-speech-recognition"}
        if self.path == "/health":
            self.answer(200, {"status": "ok"})
        elif self.path == "/v1/models":
            self.answer(200, {"object": "list", "data": [model]})
        elif self.path == "/v1/audio/transcriptions":
            self.answer(405, Refusal(405, "Use POST.").body)
        else:
            self.answer(404, Refusal(404, "Not found.").body)

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        try:
            if self.path != "/v1/audio/transcriptions":
                raise Refusal(404, "Not found.")
            if not 0 < length <= MAX_BODY:
                self.close_connection = True
                raise Refusal(413, "Send a body with a length of at most 64 MB.")
            fields = form(self.headers.get("Content-Type"), self.rfile.read(length))
            self.answer(200, self.whisper.transcribe(fields))
        except Refusal as refusal:
            self.answer(refusal.status, refusal.body)

    def answer(self, status, value):
        body = json.dumps(value).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            # Who asked has gone.
            self.close_connection = True

    def log_message(self, *_):
        pass


def main():
    args = arguments()
    Handler.whisper = Whisper(args)
    server = http.server.ThreadingHTTPServer((args.host, args.port), Handler)
    server.serve_forever()


if __name__ == "__main__":
    main()
