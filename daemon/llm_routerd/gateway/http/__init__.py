"""The gateway's server: aiohttp, who may come in, how an endpoint is answered.  The only place here with a network."""
