-- For ask-lua.cfg: asks over the Unix socket and leaves the answer in Kamailio's variables. Stands beside sidetone.lua.

local here = debug.getinfo(1, "S").source:match("^@(.*/)") or "./"
package.path = here .. "?.lua;" .. package.path

local Sidetone = require "sidetone"
local sidetone = Sidetone.new(os.getenv("SIDETONE_SOCKET"))   -- one connection for each worker

local fields = {
    language = "language", voice = "voice", tenant = "tenant_slug",
    recording = "recording_enabled", revision = "revision", stale = "stale",
}

function sidetone_ask()
    local pv = KSR.pv
    local answer, status = sidetone:lookup(pv.get("$rU") or "", {
        account_ref = pv.get("$hdr(X-Account-Ref)"),
        event_type = pv.get("$hdr(X-Event-Type)"),
    })
    pv.sets("$avp(sidetone)", status)
    for name, field in pairs(answer and fields or {}) do
        pv.sets("$avp(sidetone_" .. name .. ")", answer[field])
    end
    return 1
end
