-- Asks sidetone how a call is to be handled. Lua 5.1 to 5.4 and LuaJIT with LuaSocket (Debian: lua-socket), for FreeSWITCH (mod_lua),
-- Kamailio (app_lua, see ../kamailio) and scripts of one's own.
--
--   local Sidetone = require "sidetone"
--   local sidetone = Sidetone.new("/run/sidetone/sidetone.sock")
--   local answer, status = sidetone:lookup(number, { account_ref = "ACME-001234", zone = { "Z1", "Z2" } })
--   if answer then                             -- every field a string, "" where unset; booleans "1" and "0"
--       if answer.stale == "1" then log("answer is " .. answer.staleness_ms .. " ms old") end
--       speak(answer.language, answer.voice)
--   elseif Sidetone.refused[status] then       -- sidetone says no: unknown_number, inactive_number, tenant_suspended, ...
--       hang_up(status)
--   else                                       -- sidetone cannot say: timeout, not_ready, ...; your fallback, never "no such number"
--       speak(default_language)
--   end
--
-- resolve() asks for the prompts too and gives the JSON as it came, for a JSON library of one's choice; with
-- { include = "credentials" } the credentials are in it: do not log it.

local socket = require "socket"
local unix = require "socket.unix"

local Sidetone = {}
Sidetone.__index = Sidetone

-- The question has its answer, and it is no: asking again does not help.
Sidetone.refused = {
    unknown_number = true, inactive_number = true, tenant_suspended = true, invalid_number = true, bad_request = true,
}

-- path of the socket; seconds for connecting (0.25) and for the whole question (1).
function Sidetone.new(path, connect, total)
    return setmetatable({
        path = path or "/run/sidetone/sidetone.sock", connect = connect or 0.25, total = total or 1, not_before = 0,
    }, Sidetone)
end

local function escape(text)
    return (tostring(text):gsub("[^A-Za-z0-9%-%._~]", function(c) return ("%%%02X"):format(c:byte()) end))
end

local function query(to, call)
    local parts = { "to=" .. escape(to) }
    for name, value in pairs(call or {}) do
        for _, one in ipairs(type(value) == "table" and value or { value }) do
            parts[#parts + 1] = escape(name) .. "=" .. escape(one)
        end
    end
    return table.concat(parts, "&")
end

-- One question on one connection: the reply; or nil, why, and whether the connection ended before anything came.
local function exchange(sock, path, left)
    sock:settimeout(left(), "t")
    local sent, err = sock:send("GET " .. path .. " HTTP/1.1\r\nHost: localhost\r\n\r\n")
    if not sent then return nil, err, err ~= "timeout" end
    sock:settimeout(left(), "t")
    local line
    line, err = sock:receive("*l")
    if not line then return nil, err, err ~= "timeout" end
    local reply = { code = tonumber(line:match("^HTTP/1%.%d (%d%d%d)")) }
    for _ = 1, 64 do
        sock:settimeout(left(), "t")
        line, err = sock:receive("*l")
        if not line then return nil, err end
        if line == "" then break end
        local name, value = line:match("^([^:]+):%s*(.-)%s*$")
        if name then reply[name:lower()] = value end
    end
    local length = tonumber(reply["content-length"])   -- sidetone always says it
    if not reply.code or not length or length > 16777216 then return nil, "no answer of sidetone" end
    sock:settimeout(left(), "t")
    reply.body, err = sock:receive(length)
    if not reply.body then return nil, err end
    return reply
end

-- The body and "ok"; or nil and a status.
function Sidetone:ask(path)
    local began = socket.gettime()
    if began < self.not_before then return nil, self.away end   -- as Retry-After said
    local function left()   -- the wall clock may jump back: never wait for longer than `total`
        return math.max(0, math.min(self.total, began + self.total - socket.gettime()))
    end
    local reply, err, unheard
    for _ = 1, 2 do
        local kept = self.sock ~= nil
        if not kept then
            local sock, connected = assert(unix()), nil
            sock:settimeout(math.min(self.connect, left()), "t")
            connected, err = sock:connect(self.path)
            if not connected then
                sock:close()
                break
            end
            self.sock = sock
        end
        reply, err, unheard = exchange(self.sock, path, left)
        if not reply or reply.connection == "close" then
            self.sock:close()
            self.sock = nil
        end
        if reply or not (kept and unheard) then break end   -- once more only on a connection that sidetone had closed meanwhile
    end
    if not reply then return nil, err == "timeout" and "timeout" or "unreachable" end
    local status = reply.body:match("^status=([a-z_]+)") or reply.body:match('^{"status":"([a-z_]+)"') or "unreachable"
    if reply.code == 200 and status == "ok" then return reply.body, "ok" end
    if status == "not_ready" or status == "overloaded" then
        self.away, self.not_before = status, socket.gettime() + math.min(tonumber(reply["retry-after"]) or 1, 60)
    end
    return nil, status
end

function Sidetone:lookup(to, call)
    local form, status = self:ask("/v1/lookup?format=form&" .. query(to, call))
    if not form then return nil, status end
    local answer = {}
    for name, value in form:gmatch("([^&=]+)=?([^&]*)") do
        answer[name] = value:gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end)
    end
    return answer, status
end

function Sidetone:resolve(to, call)
    return self:ask("/v1/resolve?" .. query(to, call))
end

return Sidetone
