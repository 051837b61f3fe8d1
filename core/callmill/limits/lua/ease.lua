-- End a pause that is a guess, because calls wait of which none was refused: one of them shows whose matter the refusals are.
--
-- KEYS  META
-- ARG   channel   scope: what is paused, as pause.lua has it   least_us: so long it lasts in any case
-- Returns us until it may be asked for; 0: nothing is paused any more; -1: the pause in force is no guess.
--
-- Invariant: what an answer asked for is kept, and so is what a person paused.
local scope = ARG.scope
local suffix = scope == '' and '' or ':' .. scope
local pause_field, guess_field = 'pause' .. suffix, 'guess' .. suffix
local meta = read_meta(META, { pause_field, guess_field })
local pause = tonumber(meta[pause_field] or 0)
if pause <= now then return 0 end
local guessed, said, firm = string.match(meta[guess_field] or '', '^(%S+) (%S+) (%S+)$')
if tonumber(guessed or 0) ~= pause then return -1 end
local from = math.max(tonumber(firm), tonumber(said) + ARG.least_us)
if from < now then
  redis.call('HDEL', META, pause_field, 'reason' .. suffix, guess_field)
  redis.call('PUBLISH', ARG.channel, 'resume ' .. (scope == '' and '-' or scope))
  return 0
end
return math.ceil(math.min(from, pause) - now) + 1
