"""A team wherever a single model is: an endpoint that speaks OpenAI's protocol, over `runtime.live`."""
