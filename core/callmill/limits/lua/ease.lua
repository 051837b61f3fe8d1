-- End a pause that is a guess, because calls wait of which none was refused: one of them shows whose matter the refusals are.
--
-- KEYS  META
-- ARG   channel   scope: what is paused, as pause.lua has it   least_us: so long it lasts in any case
--       waits: the class of a call that waits
-- Returns { us until it may be asked for, the class of the call whose refusal the pause comes from, or '' }; 0 us: nothing
-- is paused any more; -1: the pause in force is no guess.
--
-- Invariant: what an answer asked for is kept, and so is what a person paused. A worker that came after the refusal, and has
-- not heard of it, learns whose it was: for calls of that class no pause ends.
local scope = ARG.scope
local suffix = scope == '' and '' or ':' .. scope
local pause_field, guess_field = 'pause' .. suffix, 'guess' .. suffix
local meta = read_meta(META, { pause_field, guess_field })
local pause = tonumber(meta[pause_field] or 0)
if pause <= now then return { 0, '' } end
local guessed, said, firm, refused = string.match(meta[guess_field] or '', '^(%S+) (%S+) (%S+) (.*)$')
if tonumber(guessed or 0) ~= pause then return { -1, '' } end
if refused ~= '' and refused == ARG.waits then return { math.ceil(pause - now) + 1, refused } end
local from = math.max(tonumber(firm), tonumber(said) + ARG.least_us)
if from < now then
  redis.call('HDEL', META, pause_field, 'reason' .. suffix, guess_field)
  redis.call('PUBLISH', ARG.channel, 'resume ' .. (scope == '' and '-' or scope))
  return { 0, refused }
end
return { math.ceil(math.min(from, pause) - now) + 1, refused }
