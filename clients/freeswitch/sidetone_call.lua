-- Asks sidetone how this call is to be handled, over the Unix socket: mod_lua with LuaSocket, beside ../lua/sidetone.lua in FreeSWITCH's
-- script directory. Every question ends within a second.
--
--   <action application="lua" data="sidetone_call.lua"/>
--   <action application="execute_extension" data="sidetone_${sidetone} XML ${context}"/>
--
-- sets sidetone to yes, no or away, sidetone_status, and with yes every field of the flat form as sidetone_language, sidetone_voice,
-- sidetone_tenant_slug, sidetone_stale ("1": answered from rows that may be old), ... The call tells by its variables account_ref and
-- event_type what else is known of it.

local here = debug.getinfo(1, "S").source:match("^@(.*/)") or "./"
package.path = here .. "?.lua;" .. package.path

local Sidetone = require "sidetone"
local sidetone = Sidetone.new(session:getVariable("sidetone_socket"))

local answer, status = sidetone:lookup(session:getVariable("destination_number"), {
    account_ref = session:getVariable("account_ref"),
    event_type = session:getVariable("event_type"),
})
session:setVariable("sidetone", answer and "yes" or Sidetone.refused[status] and "no" or "away")
session:setVariable("sidetone_status", status)
for name, value in pairs(answer or {}) do
    session:setVariable("sidetone_" .. name, value)
end
