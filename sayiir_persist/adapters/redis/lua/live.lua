-- Whether any claim on an instance is live.
local function has_live_claims(row, now)
  for _, claim in pairs(row.claims or {}) do
    if not claim.ttl or now < ends_at(claim) then
      return true
    end
  end

  return false
end
