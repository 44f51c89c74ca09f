"""The `openai` package, unchanged, against a gateway. Prints one JSON object a line.

    openai_client.py URL models
    openai_client.py URL chat MODEL PROMPT      what the headers say, the whole answer
    openai_client.py URL stream MODEL PROMPT    who answers, each piece, the whole answer
    openai_client.py URL errors MODEL           what each bad request raises
"""

import json
import sys

import openai


def say(**fields):
    print(json.dumps(fields), flush=True)


def ask(model, prompt, **options):
    return dict(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        max_tokens=options.pop("max_tokens", 60),
        **options,
    )


def models(client):
    say(models=[model.id for model in client.models.list()])


def chat(client, model, prompt):
    response = client.chat.completions.with_raw_response.create(**ask(model, prompt))
    said = {name: response.headers.get("x-unamesh-" + name) for name in ("peer", "why", "seam")}
    say(**said)
    answer = response.parse()
    choice = answer.choices[0]
    say(
        text=choice.message.content,
        finish=choice.finish_reason,
        tokens=answer.usage.completion_tokens,
    )


def stream(client, model, prompt):
    # With the trailers that the gateway sends to whoever reads them: the package must not stumble.
    options = dict(stream=True, stream_options={"include_usage": True}, extra_headers={"TE": "trailers"})
    response = client.chat.completions.with_raw_response.create(**ask(model, prompt, **options))
    say(node=response.headers.get("x-unamesh-node"))
    text, finish, tokens = "", None, None
    for chunk in response.parse():
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            finish = choice.finish_reason or finish
            if choice.delta.content:
                text += choice.delta.content
                say(delta=choice.delta.content)
    say(text=text, finish=finish, tokens=tokens)


def errors(client, model):
    cases = {
        "unknown model": ask("no-such-model", "Hello"),
        "temperature": ask(model, "Hello") | {"temperature": "warm"},
        "max_tokens": ask(model, "Hello", max_tokens="many"),
        "messages": {"model": model, "messages": "Hello"},
        "context": ask(model, "word " * 20000),
    }
    for name, request in cases.items():
        try:
            client.chat.completions.create(**request)
            say(case=name, raised=None)
        except openai.APIStatusError as error:
            say(
                case=name,
                raised=type(error).__name__,
                status=error.status_code,
                code=error.code,
                param=error.param,
                message=str(error),
            )


if __name__ == "__main__":
    url, command, *arguments = sys.argv[1:]
    # No retries by the package: what the test sees is what the gateway did.
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
    globals()[command](client, *arguments)
