"""The pure half: no asyncio, Redis, HTTP or clock; whatever needs the time takes `now` as an argument."""
