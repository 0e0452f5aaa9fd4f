rockspec_format = "3.0"
package = "llm-routerd-example"
version = "1-1"
source = { url = "." }
description = { summary = "Ask llm-routerd with redis-lua.", license = "Apache-2.0" }
dependencies = { "lua >= 5.1", "redis-lua >= 2.0", "lua-cjson >= 2.1", "luasocket >= 3.0" }
build = { type = "none" }
