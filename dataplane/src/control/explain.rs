//! "What would happen to this frame?": the pipeline's own functions, one by one, with their answers.

use slipway_api::{Decision as Answer, ExplainReply, Stage};

use crate::fdb::Fdb;
use crate::flow::{self, L2};
use crate::frame::HEAD;
use crate::neighbour;
use crate::offload::Abilities;
use crate::pipeline::{self, Decision};
use crate::policy::Direction;
use crate::port::{PortId, Vport};
use crate::stats::DropReason;
use crate::tables::Tables;
use crate::vring::{MAX_FRAME_BYTES, VNET_HDR};
use crate::wire::Mac;

/// Sends `frame` through the stages as if it came from `vport`. Nothing is learned or counted.
pub fn explain(vport: &Vport, tables: &Tables, fdb: &Fdb, frame: &[u8]) -> ExplainReply {
    let mut stages = Vec::new();
    let decision = match judge(&mut stages, vport, tables, fdb, frame) {
        Ok(decision) => decision,
        Err(reason) => Decision::Drop(reason),
    };
    let decision = deliver(&mut stages, vport, tables, frame, decision);
    ExplainReply { stages, decision }
}

fn judge(
    stages: &mut Vec<Stage>,
    vport: &Vport,
    tables: &Tables,
    fdb: &Fdb,
    frame: &[u8],
) -> Result<Decision, DropReason> {
    let len = frame.len() as u32;
    let mut head = [0; HEAD];
    let head_len = frame.len().min(HEAD);
    head[..head_len].copy_from_slice(&frame[..head_len]);

    let parsed = parse(&head, len);
    let described = parsed.as_ref().ok().map(|l2| {
        let (src, dst) = (l2.src_mac(), l2.dst_mac());
        format!("{len} bytes, {src} to {dst}, EtherType {:#06x}", l2.ethertype)
    });
    let l2 = answer(stages, "parse", parsed, described)?;

    let head = &head[..head_len];
    let size = pipeline::check_offload(vport, &[0; VNET_HDR], head, len, Abilities::NONE);
    let limit = format!("at most {} bytes", vport.rules.max_frame_bytes);
    answer(stages, "size", size, Some(limit))?;

    let owner = vport.rules.mac.filter(|_| vport.rules.anti_spoof);
    let rule = match owner {
        Some(mac) => format!("only {} may be the source", Mac::from_key(mac)),
        None => "any station's address may be the source".to_owned(),
    };
    let rule = match vport.rules.bound {
        Some(_) => format!("{rule}, with the IP addresses of the port"),
        None => rule,
    };
    let sources = pipeline::anti_spoof(vport, &l2, head, len);
    answer(stages, "anti_spoof", sources, Some(rule))?;

    if let Some(guard) = tables.policies.of(vport.id) {
        let (allowed, why) = guard.explain(Direction::Egress, head, len);
        let word =
            allowed.err().map_or("pass".to_owned(), |reason| format!("drop: {}", reason.name()));
        stages.push(Stage { stage: "policy_egress".into(), answer: word, detail: Some(why) });
        allowed?;
    }

    let asked = neighbour::ask(&tables.neighbours, vport.place(), &l2, head);
    let told = match asked {
        Ok(Some(told)) => {
            let answer = format!("answered: at {}", told.mac());
            stages.push(Stage { stage: "neighbour".into(), answer, detail: None });
            Some(told)
        }
        other => answer(stages, "neighbour", other, None)?,
    };

    stages.push(Stage {
        stage: "learning".into(),
        answer: learning(vport, fdb, &l2),
        detail: None,
    });

    if let Some(told) = told {
        return Ok(Decision::Answer(told));
    }
    let decision = pipeline::route(vport, tables, fdb, &l2);
    let segment = tables.segment(vport.rules.segment);
    let detail = segment.map(|segment| format!("VNI {}", segment.vni));
    let found = match decision {
        Decision::Output(id) => format!("known: {}", name(tables, id)),
        Decision::Answer(_) => unreachable!("a route is no answer"),
        Decision::Flood if l2.is_to_group() => "flood: a group address".to_owned(),
        Decision::Flood => "flood: unknown address, and the VNI floods those".to_owned(),
        Decision::Drop(reason) => format!("drop: {}", reason.name()),
    };
    stages.push(Stage { stage: "fdb".into(), answer: found, detail });
    Ok(decision)
}

fn parse(head: &[u8; HEAD], len: u32) -> Result<L2, DropReason> {
    if len < 14 {
        return Err(DropReason::Truncated);
    }
    if len > MAX_FRAME_BYTES {
        return Err(DropReason::TooLong);
    }
    flow::l2(head, len).map_err(|_| DropReason::Malformed)
}

fn answer<T>(
    stages: &mut Vec<Stage>,
    stage: &str,
    result: Result<T, DropReason>,
    detail: Option<String>,
) -> Result<T, DropReason> {
    let (answer, detail) = match &result {
        Ok(_) => ("pass".to_owned(), detail),
        Err(reason) => (format!("drop: {}", reason.name()), Some(reason.meaning().to_owned())),
    };
    stages.push(Stage { stage: stage.to_owned(), answer, detail });
    result
}

fn learning(vport: &Vport, fdb: &Fdb, l2: &L2) -> String {
    let known = fdb.lookup(vport.rules.segment, l2.src);
    match (vport.rules.learning, known) {
        (_, Some(port)) if port == vport.id => "known here".to_owned(),
        (true, Some(_)) => "known at another port: would move here, unless static".to_owned(),
        (true, None) => "unknown: would be learned".to_owned(),
        (false, _) => "off".to_owned(),
    }
}

/// The last stages: whether the receivers may have the frame, and can take one now.
fn deliver(
    stages: &mut Vec<Stage>,
    vport: &Vport,
    tables: &Tables,
    frame: &[u8],
    decision: Decision,
) -> Answer {
    let receivers: Vec<PortId> = match decision {
        Decision::Drop(reason) => return Answer::Drop { reason: reason.name().into() },
        Decision::Output(id) => vec![id],
        Decision::Answer(_) => vec![vport.id],
        Decision::Flood => tables.segment(vport.rules.segment).map_or_else(Vec::new, |segment| {
            segment.members.iter().copied().filter(|&id| id != vport.id).collect()
        }),
    };
    // Answers are ARP and neighbour discovery, which pass.
    let is_answer = matches!(decision, Decision::Answer(_));
    let fates: Vec<_> = receivers
        .into_iter()
        .map(|id| {
            let allowed = if is_answer { Ok(()) } else { admit(stages, tables, id, frame) };
            let is_up = tables.port(id).is_some_and(|out| out.rx_enabled() > 0);
            (id, allowed.and(if is_up { Ok(()) } else { Err(DropReason::LinkDown) }))
        })
        .collect();
    let ids = |wanted: Result<(), DropReason>| -> Vec<PortId> {
        fates.iter().filter(|(_, fate)| *fate == wanted).map(|&(id, _)| id).collect()
    };
    let (up, down) = (ids(Ok(())), ids(Err(DropReason::LinkDown)));
    let names =
        |ids: &[PortId]| -> Vec<String> { ids.iter().map(|&id| name(tables, id)).collect() };
    let detail = (!down.is_empty()).then(|| format!("link down: {}", names(&down).join(", ")));
    // The first refusal is the frame's.
    let reason = fates.iter().find_map(|(_, fate)| fate.err()).unwrap_or(DropReason::NoReceiver);
    let answer = if up.is_empty() {
        format!("drop: {}", reason.name())
    } else {
        format!("deliver: {}", names(&up).join(", "))
    };
    stages.push(Stage { stage: "egress".into(), answer, detail });
    match (decision, up.first()) {
        (_, None) => Answer::Drop { reason: reason.name().into() },
        (Decision::Answer(told), Some(_)) => Answer::Answer { mac: slipway_api::Mac(told.mac().0) },
        (Decision::Output(_), Some(&id)) => Answer::Output { port: name(tables, id) },
        _ => Answer::Flood { ports: names(&up) },
    }
}

/// Whether the policy of a receiver lets the frame in; a stage for each that has one.
fn admit(
    stages: &mut Vec<Stage>,
    tables: &Tables,
    id: PortId,
    frame: &[u8],
) -> Result<(), DropReason> {
    let Some(guard) = tables.policies.of(id) else { return Ok(()) };
    let head = &frame[..frame.len().min(HEAD)];
    let (allowed, why) = guard.explain(Direction::Ingress, head, frame.len() as u32);
    let answer = match allowed {
        Ok(()) => format!("pass: {}", name(tables, id)),
        Err(reason) => format!("drop: {} of {}", reason.name(), name(tables, id)),
    };
    stages.push(Stage { stage: "policy_ingress".into(), answer, detail: Some(why) });
    allowed
}

fn name(tables: &Tables, id: PortId) -> String {
    tables.port(id).map_or_else(|| format!("port {}", id.0), |vport| vport.name.clone())
}
