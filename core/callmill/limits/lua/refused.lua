-- Learn from an API's refusal of a call that our limits allowed.
--
-- KEYS  1 meta hash   2 meta hash of the permits   3.. one hash per limit that held for the call
-- ARGV  1 us since the call started   2 us since it was refused   3 other calls of this worker that were in flight then
--       4 of all workers   5 permits that this worker held, 0: calls in flight are not limited   6 calls a second that the
--         API took lately   7 what there was too much of: 'rate', 'concurrency' or '' where nobody says   8 which limit
--         begins now (from 1), of a pace that nobody wrote down; 0: none   9 the most that its factor may be   10 channel
--       11 how many such refusals came in a row, none of them a call that the API took in between
-- Returns 1: something was changed; 0: the refusal belongs to one that was counted already.
--
-- Invariants: refusals of calls that started before the latest change count as one with it, however many they are; nothing
-- changes more often than once a second. Nobody who refuses says which limit it was. Calls in flight cannot be the reason
-- where there were none; the pace is not where calls waited for others to end rather than for their time. Where both may
-- be, both come down to what the API took. The first refusal in a while of limits that are written down widens the guard by
-- half (calls may reach the server further apart from their plan than we measured), but not on a server that forgives a
-- burst, where that would cost far more than an accident is worth; the next slows down the pace with the least to spare, and
-- so does one where the wider guard would cost more than a tenth of that pace.
local CALM_US, LEAST_GUARD_US, MOST_GUARD_US, SINCE_US = 60000000, 1000, 10000000, 1000000
local started, at = now - tonumber(ARGV[1]), now - tonumber(ARGV[2])
local others, taken, held, kind = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[7]
local meta = redis.call('HMGET', M, 'epoch', 'guard', 'guard_before', 'extra', 'extra_at', 'calm')
local function field(i) return tonumber(meta[i] or 0) end

local crowd = in_flight.read(KEYS[2], now)
local limited = held > 0 and crowd.most > 0
if started <= field(1) then
  if limited and others > 0 and taken < crowd.most and crowd.mode == 'hold' and kind ~= 'rate' then
    crowd.most = math.floor(taken)
    in_flight.write(crowd)
  end
  return 0
end
redis.call('HSET', M, 'epoch', text(now))

local crowded = limited and others > 0 and others + 1 >= held -- calls waited for others to end
local begins = tonumber(ARGV[8])
local again = now - field(6) < CALM_US
if limited and (kind == 'concurrency' or kind == '' and crowded) then
  in_flight.lower(crowd, taken)
elseif not limited and others > 0 and (kind == 'concurrency' or kind == '' and again and begins == 0) then
  crowd.most = taken + 1
  in_flight.lower(crowd, taken)
  redis.call('HSET', M, 'learned_in_flight', 1)
  redis.call('PUBLISH', ARGV[10], 'learned')
end

local tightest, forgiving
for i = 3, #KEYS do
  local h = redis.call('HMGET', KEYS[i], 'tat', 'column', 'quota', 'factor', 'mode', 'window', 'gain', 'slack', 'amount', 'sent',
    'sent_from', 'charge')
  forgiving = forgiving or tonumber(h[8] or 0) > 0
  if h[6] and h[3] ~= '1' then
    local x = { key = KEYS[i], tat = tonumber(h[1] or 0), requests = h[2] == '1', window = tonumber(h[6]),
      gain = tonumber(h[7]), slack = tonumber(h[8]), amount = tonumber(h[9]) }
    adapt.read(x, h[4], h[5])
    x.sent, x.sent_from = tonumber(h[10] or 0), tonumber(h[11] or 0)
    local ahead = tonumber(h[12] or 0) > 0 and math.max(0, x.tat - at) / tonumber(h[12]) or 0
    x.ahead = math.min(ahead, x.sent)
    local searching = x.mode == 'start' or x.most and x.most > 1 or i - 2 == begins
    x.rank = (searching and 1e18 or 0) + (x.requests and 1e17 or 0) + x.tat
    x.begins = i - 2 == begins
    if not tightest or x.rank > tightest.rank then tightest = x end
  end
end
local function lower(x)
  if x.mode ~= 'start' and now - field(1) < SINCE_US then return end
  local delivered
  if x.sent_from > 0 and at > x.sent_from then
    delivered = tonumber(ARGV[11]) > 1 and 0 or math.max(0, x.sent - x.ahead - 1) * x.window / (x.amount * (at - x.sent_from))
  end
  if tonumber(ARGV[11]) == 1 then -- what was longer ago counts for half
    redis.call('HSET', x.key, 'sent', (x.sent + x.ahead) / 2, 'sent_from', text((at + x.sent_from) / 2))
  end
  adapt.lower(x, delivered)
end
local extra = field(4) * math.exp((field(5) - now) / 1e9)
local guard = math.max(field(2), field(3), LEAST_GUARD_US) + extra
local function affordable(x) return forgiving or x.gain * math.max(0, 1.5 * guard - x.slack) <= x.window / 10 end
if tightest and tightest.begins and tightest.mode == '' then
  local lately = math.max(1, tonumber(ARGV[6]))
  redis.call('HSET', tightest.key, 'sent', lately / 2, 'sent_from', text(at - 500000), 'learned_at', text(now))
  adapt.begin(tightest, lately * tightest.window / (tightest.amount * 1e6), tonumber(ARGV[9]))
  redis.call('HSET', M, 'learned_pace', 1)
  redis.call('PUBLISH', ARGV[10], 'learned')
elseif kind ~= 'concurrency' and tightest and not (crowded and tightest.mode ~= 'start') then
  if tightest.mode ~= '' or again or not affordable(tightest) then
    lower(tightest)
  elseif not forgiving and guard <= MOST_GUARD_US then
    redis.call('HSET', M, 'extra', text(extra + guard / 2), 'extra_at', text(now))
    redis.call('HSET', tightest.key, 'sent', tightest.ahead, 'sent_from', text(at))
  end
end
redis.call('HSET', M, 'calm', text(now))
return 1
