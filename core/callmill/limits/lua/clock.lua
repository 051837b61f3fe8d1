-- Prelude of every script about starts: the clock that they all live by.
--
-- KEYS  META
-- Gives now (us, whole or not), skew, stepped_back, text(us). FORMAT is the newest version known of the limiter's state.
-- Returns an error NEWERFORMAT where the state is of a newer one, before anything else is read or written.
--
-- Invariant: now follows Redis TIME and never goes back. '%.2f' because tostring keeps 14 digits.
local function text(us) return string.format('%.2f', us) end
local clock = read_clock(META)
if tonumber(clock.format or 1) > FORMAT then return redis.error_reply('NEWERFORMAT ' .. clock.format) end
local time = redis.call('TIME')
local shown, skew = tonumber(clock.now or 0), tonumber(clock.skew or 0)
local now = time[1] * 1000000 + time[2] + skew
local stepped_back = now < shown
if stepped_back then -- go on from where we were, rather than stall until TIME has caught up
  skew = skew + shown - now
  now = shown
end
