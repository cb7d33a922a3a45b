"""Codecs: what a payload becomes on its way."""

from aiflow_agents.wire.codecs.codec import Codec
from aiflow_agents.wire.codecs.quantiser import CodecError
from aiflow_agents.wire.codecs.registry import codec, fit, needs_fitting, parse
from aiflow_agents.wire.codecs.sample import Sample

__all__ = ["Codec", "CodecError", "Sample", "codec", "fit", "needs_fitting", "parse"]
