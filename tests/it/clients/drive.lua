-- drive.lua DIRECTORY SOCKET: a question a line on stdin, `view=lookup&to=…`, after `ready` an answer a line on stdout, both as forms.
package.path = arg[1] .. "/?.lua;" .. package.path
local Sidetone = require "sidetone"
local sidetone = Sidetone.new(arg[2])

local function decode(text)
    return (text:gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end))
end

local function encode(answer)
    local parts = {}
    for name, value in pairs(answer) do
        parts[#parts + 1] = name .. "=" .. tostring(value):gsub("[^A-Za-z0-9]", function(c) return ("%%%02X"):format(c:byte()) end)
    end
    return table.concat(parts, "&")
end

print("ready")
io.stdout:flush()
for line in io.lines() do
    local call = {}
    for name, value in line:gmatch("([^&=]+)=([^&]*)") do
        name = decode(name)
        call[name] = call[name] or {}
        table.insert(call[name], decode(value))
    end
    local view, to = call.view[1], call.to[1]
    call.view, call.to = nil, nil
    local answer, status
    if view == "lookup" then
        answer, status = sidetone:lookup(to, call)
    else
        local json
        json, status = sidetone:resolve(to, call)
        answer = json and {
            language = json:match('"language":"([^"]*)"'), label = json:match('"label":"([^"]*)"'), stale = json:match('"stale":true') and 1 or 0,
            prompt_ids = json:match('"ids":"([^"]*)"'), system = json:match('"system":"([^"]*)"'),
            secret = json:match('"openai":{"default":"([^"]*)"'),
        }
    end
    local kind = answer and "answer" or Sidetone.refused[status] and "refused" or "unavailable"
    local told = answer or { wait = math.max(0, sidetone.not_before - require "socket".gettime()) }
    told.kind, told.status = kind, status
    print(encode(told))
    io.stdout:flush()
end
