"""The calls to models: one module per wire protocol, each of them a `protocol.Backend`."""
