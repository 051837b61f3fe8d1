-- Learn from an API's refusal of a call that our limits allowed.
--
-- KEYS  1 meta hash   2.. one hash per limit that held for the call
-- ARGV  1 us since the call started
-- Returns 1: something was changed; 0: the refusal belongs to one that was counted already.
--
-- Invariants: refusals of calls that started before the latest change count as one with it, however many they are; nothing
-- changes more often than once a second. The first refusal in a while widens the guard by half (calls may reach the server
-- further apart from their plan than we measured), but not on a server that forgives a burst, where that would cost far
-- more than an accident is worth; the next slows down the pace with the least to spare, and so does one where the wider guard
-- would cost more than a tenth of that pace.
local CALM_US, LEAST_GUARD_US, MOST_GUARD_US = 60000000, 1000, 10000000
local meta = redis.call('HMGET', M, 'epoch', 'guard', 'guard_before', 'extra', 'extra_at', 'calm')
local function field(i) return tonumber(meta[i] or 0) end
if now - tonumber(ARGV[1]) <= field(1) or now - field(1) < 1000000 then return 0 end
redis.call('HSET', M, 'epoch', text(now))

local tightest, forgiving
for i = 2, #KEYS do
  local h = redis.call('HMGET', KEYS[i], 'tat', 'column', 'quota', 'factor', 'mode', 'window', 'gain', 'slack')
  forgiving = forgiving or tonumber(h[8] or 0) > 0
  if h[1] and h[3] ~= '1' then
    local x = { key = KEYS[i], tat = tonumber(h[1]), requests = h[2] == '1', window = tonumber(h[6]), gain = tonumber(h[7]),
      slack = tonumber(h[8]) }
    adapt.read(x, h[4], h[5])
    local searching = x.mode == 'start' or x.most and x.most > 1
    x.rank = (searching and 1e18 or 0) + (x.requests and 1e17 or 0) + x.tat
    if not tightest or x.rank > tightest.rank then tightest = x end
  end
end
local extra = field(4) * math.exp((field(5) - now) / 1e9)
local guard = math.max(field(2), field(3), LEAST_GUARD_US) + extra
local function affordable(x) return forgiving or x.gain * math.max(0, 1.5 * guard - x.slack) <= x.window / 10 end
if tightest and (tightest.mode ~= '' or now - field(6) < CALM_US or not affordable(tightest)) then
  adapt.lower(tightest)
elseif not forgiving and guard <= MOST_GUARD_US then
  redis.call('HSET', M, 'extra', text(extra + guard / 2), 'extra_at', text(now))
end
redis.call('HSET', M, 'calm', text(now))
return 1
