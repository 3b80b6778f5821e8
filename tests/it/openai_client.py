"""What users of OpenAI's Python client do. Arguments: base URL, older version, latest version."""

import base64
import sys

import numpy
import openai

base_url, older, latest = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0)


def image(level):
    """An 8 x 8 image of one grey level, as base64 of PNM."""
    return base64.b64encode(b"P6\n8 8\n255\n" + bytes([level]) * 192).decode()


def vectors(answer):
    return numpy.array([item.embedding for item in answer.data])


def refused(kind, code, **arguments):
    try:
        client.embeddings.create(**arguments)
    except kind as error:
        assert error.code == code, error
        return error
    raise AssertionError(f"{arguments} was not refused")


# The client asks for base64 when the caller names no format, and decodes it with numpy.
images = [image(level) for level in (0, 100, 255)]
default = client.embeddings.create(model="latest", input=images)
floats = client.embeddings.create(model="latest", input=images, encoding_format="float")
assert default.model == floats.model == latest
assert [item.index for item in default.data] == [0, 1, 2]
assert default.usage.prompt_tokens == default.usage.total_tokens == 3
assert vectors(default).shape == (3, 32)
assert numpy.abs(vectors(default) - vectors(floats)).max() < 1e-6
assert numpy.abs(numpy.linalg.norm(vectors(floats), axis=1) - 1).max() < 1e-6
# A toy's last value grows with the image's level.
assert (numpy.diff(vectors(floats)[:, -1]) > 0).all()

one = client.embeddings.create(
    model=older[:8], input="data:image/x-portable-pixmap;base64," + image(100), user="someone",
    dimensions=4,
)
assert one.model == older
assert vectors(one).shape == (1, 4)
assert abs(numpy.linalg.norm(vectors(one)) - 1) < 1e-6

refused(openai.NotFoundError, "model_not_found", model="text-embedding-3-small", input=images)
error = refused(openai.BadRequestError, "invalid_image", model="latest", input=[images[0], "aGk="])
assert error.param == "input[1]", error
refused(openai.BadRequestError, "invalid_value", model="latest", input=images, dimensions=33)
refused(openai.BadRequestError, "invalid_value", model="latest", input=[[1, 2, 3]])

models = client.models.list().data
assert [model.id for model in models] == [latest, older]
assert client.models.retrieve(older).created == 1_700_000_000

print("all checks passed")
