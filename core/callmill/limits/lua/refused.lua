-- Learn from an API's refusal of a call that our limits allowed.
--
-- KEYS  1 meta hash   2 meta hash of the permits   3 hash worker -> permits in use   4.. one hash per limit that held for it
-- ARGV  1 us since the call started   2 us since it was refused   3 other calls of this worker that were in flight then
--       4 permits that this worker held, 0: calls in flight are not limited   5 calls a second that the API took lately
--       6 what there was too much of: 'rate', 'concurrency' or '' where nobody says   7 which limit begins now (from 1), of a
--         pace that nobody wrote down; 0: none   8 the most that its factor may be   9 channel
--      10 how many waves of refusals came in a row, with no call that the API took in between   11 calls of this worker that
--         the API took and that it has not told of yet   12 '1': other calls waited for permits
--      13 us that the API asked to wait, 0: it did not say   14 worker   15 '1': other calls waited
-- Returns 0: it belongs to one that was counted already; 1: something was changed; 2: and people do not know of it yet.
--
-- Invariants: refusals of calls that started before the latest change count as one with it, however many they are; nothing
-- changes more often than once a second. Nobody who refuses says which limit it was. Calls in flight cannot be the reason
-- where there were none; the pace is not where calls waited for others to end rather than for their time. Where both may
-- be, both come down to what the API took. The first refusal in a while of limits that are written down widens the guard by
-- half (calls may reach the server further apart from their plan than we measured), but not on a server that forgives a
-- burst, where that would cost far more than an accident is worth; the next slows down the pace with the least to spare, and
-- so does one where the wider guard would cost more than a tenth of that pace.
local CALM_US, LEAST_GUARD_US, MOST_GUARD_US, SINCE_US, INNOCENT, LONGEST_WINDOW_US, AHEAD, UNSEEN_US =
  60000000, 1000, 10000000, 1000000, 0.8, 60000000, 1.4, 30000
local FEW, GUESS_PER_S = 5, 10 -- from fewer calls nothing can be told: then as "auto" begins
local started, at = now - tonumber(ARGV[1]), now - tonumber(ARGV[2])
local mine, held, kind, begins = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[6], tonumber(ARGV[7])
local in_a_row, untold, crowded = tonumber(ARGV[10]), tonumber(ARGV[11]), ARGV[12] == '1'
local asked = math.min(tonumber(ARGV[13]), LONGEST_WINDOW_US)
local meta = redis.call('HMGET', M, 'epoch', 'guard', 'guard_before', 'extra', 'extra_at', 'calm')
local function field(i) return tonumber(meta[i] or 0) end
local before = field(1)

local tightest, forgiving
for i = 4, #KEYS do
  local h = redis.call('HMGET', KEYS[i], 'tat', 'column', 'quota', 'factor', 'mode', 'window', 'gain', 'slack', 'amount')
  forgiving = forgiving or tonumber(h[8] or 0) > 0
  if h[6] and h[3] ~= '1' then
    local x = { key = KEYS[i], tat = tonumber(h[1] or 0), requests = h[2] == '1', window = tonumber(h[6]),
      gain = tonumber(h[7]), slack = tonumber(h[8]), amount = tonumber(h[9]), begins = i - 3 == begins }
    adapt.read(x, h[4], h[5])
    local searching = x.mode == 'start' or x.most and x.most > 1 or x.begins
    x.rank = (searching and 1e18 or 0) + (x.requests and 1e17 or 0) + x.tat
    if not tightest or x.rank > tightest.rank then tightest = x end
  end
end
if started <= before then return 0 end -- it belongs to one that was counted
local begins_now = tightest and tightest.begins and tightest.mode == ''
if now - before < SINCE_US and not begins_now and not (tightest and tightest.mode == 'start') then return 0 end
redis.call('HSET', M, 'epoch', text(now), 'calm', text(now))

local others, in_use = mine, redis.call('HGETALL', KEYS[3])
for i = 1, #in_use, 2 do
  if in_use[i] ~= ARGV[14] then others = others + tonumber(in_use[i + 1]) end
end
local crowd, again, blamed = in_flight.read(KEYS[2], now, M), now - field(6) < CALM_US, false
if held > 0 and crowd.most > 0 then
  blamed = kind == 'concurrency' or kind == '' and crowded and mine > 0 and crowd.count < crowd.most
  if blamed then in_flight.lower(crowd, others) end
elseif mine > 0 and (kind == 'concurrency' or kind == '' and again and begins == 0) then
  crowd.most = others + 1
  in_flight.lower(crowd, others)
  redis.call('HSET', M, 'learned_in_flight', 1)
  redis.call('PUBLISH', ARGV[9], 'learned')
end

local function factor(x, per_s) return per_s * x.window / (x.amount * 1e6) end
local function begin_row(x, row_at)
  taken.begin_row(x, row_at, in_a_row, asked, crowd.minute + untold, crowd.minute_from)
end

local function begin(x) -- a pace that nobody wrote down
  x.taken, x.taken_from = crowd.taken + untold, crowd.taken_from
  local least = x.taken < FEW and GUESS_PER_S or 1
  local lately = math.max(least, tonumber(ARGV[5]), in_flight.taken_per_s(crowd)) * (blamed and 2 or 1)
  begin_row(x, in_a_row > 1 and before or at)
  local again_at, windowed, trust, _, period = at + asked + UNSEEN_US, 0, 0 -- what the API takes if it counts windows
  if asked == 0 then again_at = x.row_at + AHEAD * (at - x.row_at) end
  if asked > 0 or in_a_row > 1 then windowed, trust, _, period = taken.in_windows(x, again_at) end
  taken.forget(x)
  local slower = windowed > 0 and windowed < lately
  local per_s = slower and lately * (windowed / lately) ^ trust or lately
  local told = slower and asked > 0 and trust == 1 and ARGV[15] == '1' -- else nobody wanted to make more calls
  adapt.begin(x, factor(x, per_s), factor(x, lately), tonumber(ARGV[8]), told and period or 0)
  redis.call('HSET', M, 'learned_pace', 1)
  redis.call('PUBLISH', ARGV[9], 'learned')
end

local function bound(x) -- the API took nothing since the last refusal
  if not taken.prolong_row(x, in_a_row, asked) then begin_row(x, at) end
  local per_s, trust, highest, period = taken.in_windows(x, x.row_at + AHEAD * (at - x.row_at))
  local bound = per_s > 0 and x.row_factor * math.min(1, factor(x, per_s) / x.row_factor) ^ trust or x.factor
  adapt.bound(x, bound, x.row_factor, factor(x, highest), period, x.row_until)
end

local function lower(x)
  local delivered, doubt
  if x.requests then
    delivered, doubt = taken.since_refusal(x, asked, x.mode == 'start')
    delivered = delivered and factor(x, delivered)
    begin_row(x, at)
    if x.mode == 'start' then taken.halve(x) else taken.forget(x) end
  end
  if delivered and x.good and x.good > delivered then delivered = delivered * (x.good / delivered) ^ doubt end
  if blamed and delivered and delivered < INNOCENT * x.factor then return end
  adapt.lower(x, delivered, doubt or 1)
  if x.begins and x.tat > now then -- starts that were granted at the former pace are void
    redis.call('HSET', x.key, 'tat', text(math.min(x.tat, now + x.window / (x.amount * x.factor))))
    redis.call('PUBLISH', ARGV[9], 'slower')
  end
end

local function news(x) return (crowd.is_new or x and x.is_new) and 2 or 1 end
if not tightest or kind == 'concurrency' then return news() end
local extra = field(4) * math.exp((field(5) - now) / 1e9)
local guard = math.max(field(2), field(3), LEAST_GUARD_US) + extra
local function affordable(x) return forgiving or x.gain * math.max(0, 1.5 * guard - x.slack) <= x.window / 10 end
taken.read(tightest, at, untold, others)
if begins_now then
  if blamed and not again then return news() end -- if it was not that, the next refusal comes soon
  begin(tightest)
elseif blamed and tightest.mode ~= 'start' then
  -- not the pace
elseif tightest.mode ~= '' or again or not affordable(tightest) then
  if in_a_row > 1 then bound(tightest) else lower(tightest) end
elseif not forgiving and guard <= MOST_GUARD_US then
  redis.call('HSET', M, 'extra', text(extra + guard / 2), 'extra_at', text(now))
  taken.forget(tightest)
end
taken.write(tightest)
return news(tightest)
